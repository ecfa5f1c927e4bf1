"""Every state in which a database cannot be worked with is told in one line that says what to do."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, LiteralString
from urllib.parse import quote

import psycopg
import pytest

from service.db import connect as connecting
from service.db import migrate as migrations
from service.db.engines import ENGINES
from service.db.migrate import migrate
from service.db.preflight import checked
from service.errors import DatabaseError
from tests.integration.backfilling import value

PASSWORD = "p@ss/w:rd"


def refusal(call: Callable[..., object], *arguments: object) -> str:
    """The message of the DatabaseError that a call raises: one line, and no password in it."""
    with pytest.raises(DatabaseError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert PASSWORD not in text
    assert quote(PASSWORD, safe="") not in text
    return text


def execute(url: str, *statements: LiteralString) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)


# It cannot be reached


@contextmanager
def listening(*, answer: bytes | None) -> Iterator[int]:
    """A port that refuses (None), or accepts and sends nothing more than the answer."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answer is not None:
            server.listen()
        yield server.getsockname()[1]


def test_a_server_that_is_not_there_is_told_with_where_it_was_looked_for() -> None:
    with listening(answer=None) as port:
        text = refusal(checked, f"postgresql://ours:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/market", "plain")
    assert text.startswith(f"cannot reach the database at 127.0.0.1:{port}: is it running? check DB_HOST and DB_PORT")


def test_a_socket_that_is_not_there_is_told_too(tmp_path: Path) -> None:
    text = refusal(migrate, f"postgresql://ours@/market?host={tmp_path}&port=5432", "plain")
    assert text.startswith(f"cannot reach the database at {tmp_path}:5432")


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "CONNECT_SECONDS", 2)
    with listening(answer=b"") as port:
        text = refusal(checked, f"postgresql://ours@127.0.0.1:{port}/market", "plain")
    assert text.startswith("cannot reach the database")
    assert "timeout" in text


# It does not let us in


@pytest.fixture
def login(plain_server: Any) -> Iterator[str]:  # noqa: ANN401 - the class is the conftest's own
    """A user of the embedded server who, unlike all others, needs a password."""
    admin = plain_server.admin
    rules = Path(admin.execute("SHOW hba_file").fetchone()[0])
    before = rules.read_text()
    admin.execute(f"CREATE ROLE careful LOGIN PASSWORD '{PASSWORD}'")
    rules.write_text(f"local all careful scram-sha-256\n{before}")
    admin.execute("SELECT pg_reload_conf()")
    yield "careful"
    rules.write_text(before)
    admin.execute("SELECT pg_reload_conf()")
    admin.execute("DROP ROLE careful")


def as_user(url: str, user: str, password: str = "") -> str:
    login = f"{user}:{quote(password, safe='')}" if password else user
    return f"postgresql://{login}@{url.partition('@')[2]}"


def test_a_wrong_or_missing_password_is_told_with_the_users_name(plain_server: Any, login: str) -> None:  # noqa: ANN401
    url = plain_server.url("candlewick")
    deadline = time.monotonic() + 10
    while True:  # the server reads its rules again in its own time
        with contextlib.suppress(DatabaseError), connecting.connect(as_user(url, login)):
            assert time.monotonic() < deadline, "the password is not asked for"
            continue
        break
    for given in ("", f"{PASSWORD}x"):
        text = refusal(checked, as_user(url, login, given), "plain")
        assert "refuses user 'careful': check DB_USER and DB_PASSWORD, or DATABASE_URL" in text
    with connecting.connect(as_user(url, login, PASSWORD)) as conn:
        assert conn.info.user == login


def test_a_user_who_does_not_exist_is_refused_by_name(plain_server: Any) -> None:  # noqa: ANN401
    text = refusal(checked, as_user(plain_server.url("candlewick"), "nobody"), "plain")
    assert "refuses user 'nobody'" in text


def test_a_database_that_does_not_exist_is_told_by_name(plain_server: Any) -> None:  # noqa: ANN401
    text = refusal(checked, plain_server.url("nowhere"), "plain")
    assert "there is no database 'nowhere' at " in text
    assert "create it, or check DB_NAME or DATABASE_URL" in text


# Its schema is not ours


def test_a_database_that_was_never_migrated_is_told_what_to_run(empty_database: str, engine: str) -> None:
    assert "no Candlewick schema yet: run `candlewick migrate`" in refusal(checked, empty_database, engine)


def test_a_database_taken_back_to_nothing_is_told_the_same(database: str, engine: str) -> None:
    migrate(database, engine, "base")
    assert "no Candlewick schema yet: run `candlewick migrate`" in refusal(checked, database, engine)


def test_a_schema_from_a_newer_release_is_left_alone(database: str, engine: str) -> None:
    execute(database, "UPDATE market_data.alembic_version SET version_num = '9999'")
    for call in (checked, migrate):
        text = refusal(call, database, engine)
        assert "(9999) is newer than this Candlewick: install the newer release" in text


@pytest.mark.parametrize("engine", ["plain"], indirect=True)
def test_a_schema_from_an_older_release_is_told_what_to_run(
    database: str, engine: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = tmp_path / "alembic"
    shutil.copytree(repository / "alembic", later)
    newest = value(database, "SELECT version_num FROM market_data.alembic_version")
    (later / "versions" / "9998_later.py").write_text(
        f'revision = "9998"\ndown_revision = "{newest}"\n\n\ndef upgrade():\n    pass\n'
    )
    monkeypatch.setattr(migrations, "_scripts", lambda: later)
    told = f"({newest}) is older than this Candlewick (9998): run `candlewick migrate`"
    assert told in refusal(checked, database, engine)
    assert migrate(database, engine) == (newest, "9998")
    assert checked(database, engine).engine.name == engine


def test_a_database_that_is_as_it_should_be_is_opened(database: str, engine: str) -> None:
    db = checked(database, engine)
    assert db.engine is ENGINES[engine]
    assert "PostgreSQL" in db.version
    assert ("TimescaleDB" in db.version) == (engine == "timescaledb")


# Its engine is not ours


def test_a_database_made_for_the_other_engine_is_refused_and_not_touched(database: str, engine: str) -> None:
    other = next(name for name in ENGINES if name != engine)
    for call in (checked, migrate):
        text = refusal(call, database, other)
        assert f"was made for ENGINE={engine}, and ENGINE is {other} now: set ENGINE={engine}" in text
    if engine == "plain":
        with psycopg.connect(database) as conn:
            assert conn.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'").fetchone() is None


@pytest.mark.parametrize("engine", ["plain"], indirect=True)
def test_a_server_without_the_extension_is_told_both_ways_out(empty_database: str) -> None:
    text = refusal(migrate, empty_database, "timescaledb")
    assert text == (
        "this PostgreSQL has no timescaledb extension: install TimescaleDB Community there, "
        "or set ENGINE=plain to do without it"
    )


@pytest.mark.parametrize("engine", ["plain"], indirect=True)
def test_a_database_that_lost_its_extension_is_told_so(database: str) -> None:
    """As after a restore into a server that does not have it."""
    execute(database, "UPDATE market_data.installation SET engine = 'timescaledb'")
    assert "no timescaledb extension" in refusal(checked, database, "timescaledb")


@pytest.mark.timescaledb
@pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)
def test_a_user_who_may_not_create_the_extension_is_told_who_may(empty_database: str) -> None:
    name = f"candlewick_weak_{os.getpid()}"
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
        try:
            text = refusal(migrate, as_user(empty_database, name, PASSWORD), "timescaledb")
        finally:
            admin.execute(f"DROP ROLE {name}")
    assert "may not create the timescaledb extension: run CREATE EXTENSION timescaledb as a superuser" in text


def answering(version: int = 15_00_20, row: tuple[str, ...] | None = None) -> Any:  # noqa: ANN401 - what is asked of a connection
    """As much of a connection as `verify` looks at: servers that no test can have."""
    return SimpleNamespace(
        info=SimpleNamespace(server_version=version),
        execute=lambda _: SimpleNamespace(fetchone=lambda: row),
    )


def test_a_postgresql_without_multiranges_is_too_old() -> None:
    assert refusal(ENGINES["plain"].verify, answering(13_00_22)) == (
        "PostgreSQL 13 is too old: Candlewick needs 14 or newer"
    )
    assert ENGINES["plain"].verify(answering(14_00_01)) == "PostgreSQL 14.1"


def test_a_timescaledb_from_before_2_28_is_too_old() -> None:
    text = refusal(ENGINES["timescaledb"].verify, answering(row=("2.27.4", "timescale", "15.20")))
    assert text == "TimescaleDB 2.27.4 is too old: Candlewick needs 2.28 or newer"
    newer = answering(row=("3.0.0-dev", "timescale", "18.4 (Debian)"))
    assert ENGINES["timescaledb"].verify(newer) == "TimescaleDB 3.0.0-dev on PostgreSQL 18.4"


# Its server is not set up for the extension


class Cluster:
    """A server of our own that can be started with other options each time."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "--pgdata", str(folder / "data"))
        self.url = f"postgresql://postgres@/postgres?host={folder}&port=5432"

    @contextmanager
    def running(self, *options: str) -> Iterator[str]:
        words = ["-c fsync=off", "-c listen_addresses=", f"-k {self._folder}", "-p 5432", *(f"-c {o}" for o in options)]
        where = ["--pgdata", str(self._folder / "data"), "--log", str(self._folder / "log"), "--wait"]
        self._run("pg_ctl", "start", *where, "--options", " ".join(words))
        try:
            yield self.url
        finally:
            self._run("pg_ctl", "stop", *where[:2], "--mode", "immediate")

    def _run(self, program: str, *words: str) -> None:
        subprocess.run(
            [self._programs / program, *words], check=True, cwd="/", user=self._user, stdout=subprocess.DEVNULL
        )


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Made with the PostgreSQL that `pg_config` names, if that one has the extension."""
    program = shutil.which("pg_config")
    said = [
        subprocess.run([program, f"--{name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("bindir", "sharedir")
        if program
    ]
    if not said or not (Path(said[1]) / "extension" / "timescaledb.control").exists():
        pytest.skip("no PostgreSQL with TimescaleDB is installed here (pg_config): its states are not tried")
    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    try:
        yield Cluster(Path(said[0]), folder)
    finally:
        shutil.rmtree(folder)


@pytest.mark.timescaledb
def test_a_server_whose_timescaledb_cannot_do_the_work_is_told_what_to_change(cluster: Cluster) -> None:
    """Not loaded, or of the Apache edition: when the database is made, and when it was made before that."""
    not_loaded = "installed but not loaded: add it to shared_preload_libraries in postgresql.conf and restart"
    apache = "apache edition, which has no continuous aggregates: use the Community edition"
    loaded = "shared_preload_libraries=timescaledb"
    with cluster.running() as url:
        assert not_loaded in refusal(migrate, url, "timescaledb")
    with cluster.running(loaded, "timescaledb.license=apache") as url:
        assert apache in refusal(migrate, url, "timescaledb")
    with cluster.running(loaded) as url:
        migrate(url, "timescaledb")
        checked(url, "timescaledb")
    with cluster.running(loaded, "timescaledb.license=apache") as url:
        assert apache in refusal(checked, url, "timescaledb")
    with cluster.running() as url:
        assert not_loaded in refusal(checked, url, "timescaledb")
