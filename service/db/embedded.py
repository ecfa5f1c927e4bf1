"""The embedded PostgreSQL: a private server in DATA_DIR, so that a new user needs neither Docker nor a database.

The wheel brings the programs only. Its own server class is not used: as root it makes every parent of the data folder
and of the virtual environment searchable for all users, and it gives up on a start (a recovery) after ten seconds.
"""

import fcntl
import os
import re
import shlex
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from service.db import programs
from service.db.data_dir import UNFINISHED, DataDir, locked, open_data_dir
from service.errors import DatabaseError

NAME = "candlewick"
"""Of the database and of its owner, who needs no password: the socket is out of reach for other users."""
PORT = 5432
"""Part of the socket's name; no TCP port is opened."""
START_SECONDS = 120
CONFIGURATION = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "max_connections": "100",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
"""Of a new cluster. Durability stays as PostgreSQL has it: on. (wal_compression: the wheel is built without lz4.)"""


class Embedded:
    """One process's hold on the running server; close it, or leave its `with`, to let go."""

    def __init__(self, server: "_Server", users: IO[str]) -> None:
        self._server = server
        self._users = users

    @property
    def url(self) -> str:
        """postgresql:// URL of the database, for psycopg, psql and SQLAlchemy."""
        return self._server.url(NAME)

    def close(self) -> None:
        """Let go, and stop the server if nobody else holds it. A second call does nothing."""
        if not self._users.closed:
            with self._users, self._server.home.alone():
                self._server.stop_if_last(self._users)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Recovering(DatabaseError):
    """The server needs longer than we wait; it is left at its work."""


def start(data_dir: Path) -> Embedded:
    """Hold the server of this folder: found running (even if its last user was killed), started, or made.

    Several processes, and several callers within one, may hold it at once. A forked child shares its parent's hold.
    DatabaseError says in one line what is in the way.
    """
    try:
        server = _Server(open_data_dir(data_dir))
        users = server.home.lock_file("users.lock")
        try:
            server.join(users)
        except BaseException:
            users.close()
            raise
    except OSError as exc:
        raise DatabaseError(
            f"DATA_DIR {data_dir}: {exc.strerror or exc} ({exc.filename or 'PostgreSQL'}): "
            "choose a folder of your own on a disk with free space, or set DATABASE_URL"
        ) from exc
    return Embedded(server, users)


class _Server:
    def __init__(self, home: DataDir) -> None:
        self.home = home
        self.log = home.cluster / "server.log"
        self.socket_dir = home.socket_dir(PORT)
        found = programs.find(home.cluster)
        self.programs = programs.run_as(found, home.user, home.path / "programs") if os.geteuid() == 0 else found

    def url(self, database: str) -> str:
        return f"postgresql://{NAME}@/{database}?host={quote(str(self.socket_dir))}&port={PORT}"

    def join(self, users: IO[str]) -> None:
        """Become a user of the server, which then runs and has the database."""
        with self.home.alone():
            fcntl.flock(users, fcntl.LOCK_SH)
            try:
                if not self.home.cluster.exists():
                    self._make()
                with self._connect() as connection:
                    known = connection.execute("SELECT FROM pg_database WHERE datname = %s", [NAME]).fetchone()
                    if known is None:
                        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(NAME)))
            except _Recovering:
                raise
            except BaseException:
                self.stop_if_last(users)
                raise

    def stop_if_last(self, users: IO[str]) -> None:
        """Stop the server unless someone else is its user. Call it `alone`."""
        if not locked(users) or self._postmaster() is None:
            return
        self.programs.run("pg_ctl", "stop", "-D", str(self.home.cluster), "-m", "fast", "-t", str(START_SECONDS))
        if self._postmaster() is not None:
            raise DatabaseError(f"the database in DATA_DIR {self.home.path} does not stop: {_lines(self._said())[-1]}")

    def _make(self) -> None:
        for left in self.home.path.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)  # an initdb whose starter was killed may still be at work in it
        fresh = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.home.path))
        os.chown(fresh, self.home.user, -1)
        settings = [f"--set={name}={value}" for name, value in CONFIGURATION.items()]
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", f"--username={NAME}", f"--pgdata={fresh}"]
        code, said = self.programs.run("initdb", *options, *settings)
        if code:
            raise DatabaseError(f"DATA_DIR {self.home.path}: no database could be made there: {_cause(said)}")
        fresh.rename(self.home.cluster)

    def _connect(self) -> psycopg.Connection[Any]:
        deadline = time.monotonic() + START_SECONDS
        started = False
        while True:
            try:
                return psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=2)
            except psycopg.OperationalError as exc:
                alive = "the database system is" in str(exc) or self._postmaster() is not None
            if alive and time.monotonic() > deadline:
                raise _Recovering(
                    f"the database in DATA_DIR {self.home.path} is not ready after {START_SECONDS} seconds "
                    f"({_lines(self._said())[-1]}); it works on: try again in a minute"
                )
            if not alive and started:
                raise DatabaseError(f"the database in DATA_DIR {self.home.path} does not start: {_cause(self._said())}")
            if alive:
                time.sleep(0.1)
            else:
                self._run()
                started = True

    def _run(self) -> None:
        # Left by a server that is gone: PostgreSQL would take any process that has its number now for that server.
        (self.home.cluster / "postmaster.pid").unlink(missing_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.old"))
        options = f"-p {PORT} -k {shlex.quote(str(self.socket_dir))}"
        where = ("-D", str(self.home.cluster), "-l", str(self.log), "-o", options)
        self.programs.run("pg_ctl", "start", "-w", "-t", str(START_SECONDS), *where)

    def _postmaster(self) -> psutil.Process | None:
        try:
            process = psutil.Process(int((self.home.cluster / "postmaster.pid").read_text().split("\n")[0]))
            command = process.cmdline()
        except (FileNotFoundError, ValueError, psutil.Error):
            return None
        return process if str(self.home.cluster) in command else None

    def _said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _cause(said: str) -> str:
    """On one line: the first error, with the line before it where that one names the cause; else the end."""
    lines = _lines(said)
    for place, line in enumerate(lines):
        if re.search(r"PANIC:|FATAL:(?!  the database system is)|error:", line):
            before = lines[place - 1] if place else ""
            return f"{before}; {line}" if before.startswith("LOG:") else line
    return lines[-1]


def _lines(said: str) -> list[str]:
    return [re.sub(r"^.*? \[\d+\] ", "", line).strip() for line in said.strip().splitlines()] or ["it said nothing"]
