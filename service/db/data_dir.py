"""DATA_DIR, the folder of the embedded database: what may be in it, who may use it, and its locks.

    DATA_DIR/cluster         PostgreSQL's own folder; made as cluster.new-* and renamed, so it is whole or absent
    DATA_DIR/programs        PostgreSQL's programs, only where root's are out of reach for the server's user
    DATA_DIR/starting.lock   held by the one process that just starts or stops the server
    DATA_DIR/users.lock      held, shared, by every process that uses the server: the last one to leave stops it

Locks instead of a list of pids, because the kernel frees them however a process dies, and no pid comes back.
"""

import fcntl
import hashlib
import os
import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from service.db import programs
from service.errors import DatabaseError

LONGEST_SOCKET = 100
"""Bytes of a socket's path; the systems' own limits are 103 and more."""
LOCK_SECONDS = 240
UNFINISHED = "cluster.new-"
BESIDES = {"programs", "starting.lock", "users.lock", "lost+found", ".DS_Store"}
"""What a folder without a database may hold."""


class DataDir(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that is fit for the embedded database; made by `open_data_dir`."""

    path: Path
    user: int
    """Who runs the server."""

    @property
    def cluster(self) -> Path:
        """PostgreSQL's own folder."""
        return self.path / "cluster"

    def lock_file(self, name: str) -> IO[str]:
        """Open a lock file; it belongs to the folder's owner, whoever makes it."""
        file = (self.path / name).open("a", encoding="utf-8")
        if os.geteuid() == 0:
            owner = self.path.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        return file

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else starts or stops this server meanwhile."""
        deadline = time.monotonic() + LOCK_SECONDS
        with self.lock_file("starting.lock") as file:
            while not locked(file):
                if time.monotonic() > deadline:
                    raise DatabaseError(
                        f"another process has been starting or stopping the database in DATA_DIR {self.path} for "
                        f"{LOCK_SECONDS} seconds: end that process and try again"
                    )
                time.sleep(0.05)
            yield

    def socket_dir(self, port: int) -> Path:
        """Where the server's socket is: in the cluster, or, where that path is too long for one, in /tmp."""
        if len(os.fsencode(self.cluster / f".s.PGSQL.{port}")) <= LONGEST_SOCKET:
            return self.cluster
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        folder = Path(f"/tmp/candlewick-{self.user}-{name}")  # noqa: S108 - checked below
        if not folder.exists():
            folder.mkdir(mode=0o700)
            os.chown(folder, self.user, -1)
        state = folder.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != self.user or state.st_mode & 0o077:
            raise DatabaseError(f"{folder} is not ours: remove it, or choose a DATA_DIR with a shorter path")
        return folder


def open_data_dir(path: Path) -> DataDir:
    """Check the folder, make it if it is missing. Changes the mode or owner of nothing that exists."""
    path = path.expanduser().resolve()
    if set(str(path)) & set('"$`\\\n'):
        raise DatabaseError(f'DATA_DIR {path}: PostgreSQL takes no folder with one of " $ ` \\ in its name')
    held = {entry.name for entry in path.iterdir()} if path.exists() else set()
    is_cluster = (path / "cluster" / "PG_VERSION").exists()
    strange = sorted(name for name in held - BESIDES if not name.startswith(UNFINISHED))
    if strange and not is_cluster:
        raise DatabaseError(
            f"DATA_DIR {path} holds other things ({', '.join(strange[:3])}) and no database of Candlewick: "
            "choose an empty or a new folder"
        )
    root = os.geteuid() == 0
    user = _servers_user(path / "cluster") if root else os.geteuid()
    if root:
        _check_reach(path, user)
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir()
            if root:
                folder.chmod(0o755)
    return DataDir(path=path, user=user)


def locked(file: IO[str], how: int = fcntl.LOCK_EX) -> bool:
    """Try to take the lock on an open file, or to change the one held; False if another process is in the way."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _servers_user(cluster: Path) -> int:
    if not cluster.exists():
        return programs.system_user()
    owner = cluster.stat().st_uid
    if owner == 0:
        raise DatabaseError(
            f"{cluster} belongs to root, as whom PostgreSQL does not run: "
            f"chown -R {programs.SYSTEM_USER} {shlex.quote(str(cluster))}"
        )
    return owner


def _check_reach(path: Path, user: int) -> None:
    for folder in (path, *path.parents):
        state = folder.stat() if folder.is_dir() else None
        if state and not state.st_mode & stat.S_IXOTH and state.st_uid != user:
            raise DatabaseError(
                f"DATA_DIR {path}: {folder} is closed to the user who runs the database, and Candlewick does not open "
                "folders: choose one such as /var/lib/candlewick, or run as an ordinary user"
            )
