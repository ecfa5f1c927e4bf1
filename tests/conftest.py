"""What every test may lean on: an environment of its own, and a fresh migrated database on either engine."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import hypothesis
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from service.db import embedded
from service.settings import SETTINGS, Settings, load

REPOSITORY = Path(__file__).parent.parent
IMAGE = "timescale/timescaledb:2.28.3-pg17"
NO_TIMESCALEDB = "no TEST_DATABASE_URL and no Docker engine"

hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting and no `.env` of the developer reaches a test."""
    for setting in SETTINGS:
        monkeypatch.delenv(setting.name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The golden data beside the repository; a test that needs them is skipped, and counted, without."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("Golden data: no folder `shared` beside the repository")
    return folder


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """An empty folder that every user may enter, unlike tmp_path: root's PostgreSQL runs as another user."""
    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


class Server(NamedTuple):
    """A database server that the tests may make databases on."""

    engine: str
    admin: psycopg.Connection[Any]
    url: Callable[[str], str]
    """URL of a database by its name."""
    versions: str


class Template(NamedTuple):
    """A migrated database that is cloned for each test."""

    server: Server
    name: str


@pytest.fixture(params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    name: str = request.param
    return name


_numbers = count(1)


@pytest.fixture
def database(engine: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a fresh migrated database, dropped after the test."""
    server, template = request.getfixturevalue(f"{engine}_template")
    _note(request, server)
    name = f"{template}_{next(_numbers)}"
    _clone(server.admin, template, name)
    yield server.url(name)
    _drop(server.admin, name)


@pytest.fixture
def empty_database(engine: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a fresh database in which nothing was migrated, dropped after the test."""
    server: Server = request.getfixturevalue(f"{engine}_server")
    _note(request, server)
    name = f"candlewick_{os.getpid()}_empty_{next(_numbers)}"
    server.admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    yield server.url(name)
    _drop(server.admin, name)


@pytest.fixture
def settings(database: str, engine: str, tmp_path: Path) -> Callable[..., Settings]:
    """Make settings that point at the test's database: `settings(RETENTION_1M="90 days")`."""

    def make(**changes: str) -> Settings:
        base = {"DATABASE_URL": database, "ENGINE": engine, "DATA_DIR": str(tmp_path / "data")}
        return load(base | changes, env_file=None)

    return make


@pytest.fixture(scope="session")
def plain_server() -> Iterator[Server]:
    """The embedded server, one for each worker; what a crash would lose is not worth a disk's time here."""
    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    folder.chmod(0o755)
    with embedded.start(folder) as running:
        with psycopg.connect(running.url, autocommit=True) as connection:
            for name in ("fsync", "synchronous_commit", "full_page_writes"):
                connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(name)))
            connection.execute("SELECT pg_reload_conf()")
        with _server("plain", running.url) as server:
            yield server
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def timescaledb_server() -> Iterator[Server]:
    """The server at TEST_DATABASE_URL, else one in a container; without either the test is skipped and counted."""
    url = os.environ.get("TEST_DATABASE_URL")
    if url:
        with _server("timescaledb", url) as server:
            yield server
        return
    with _container() as own, _server("timescaledb", own) as server:
        yield server


@pytest.fixture(scope="session")
def plain_template(plain_server: Server) -> Iterator[Template]:
    """The migrated database of the plain engine."""
    with _template(plain_server) as template:
        yield template


@pytest.fixture(scope="session")
def timescaledb_template(timescaledb_server: Server) -> Iterator[Template]:
    """The migrated database of TimescaleDB."""
    with _template(timescaledb_server) as template:
        yield template


def _note(request: pytest.FixtureRequest, server: Server) -> None:
    # Unlike a global, a property of the test reaches the summary from any worker.
    if server.engine == "timescaledb":
        request.node.user_properties.append(("versions", server.versions))


@contextmanager
def _server(engine: str, url: str) -> Iterator[Server]:
    given = {key: quote(str(value), safe="") for key, value in conninfo_to_dict(url).items() if key != "dbname"}
    login = ":".join(given.pop(key) for key in ("user", "password") if key in given)
    query = "&".join(f"{key}={value}" for key, value in given.items())

    def of(name: str) -> str:
        return f"postgresql://{login}@/{name}?{query}"

    with psycopg.connect(url, autocommit=True) as admin:
        versions = f"PostgreSQL {admin.execute('SHOW server_version').fetchone()[0].split()[0]}"  # type: ignore[index]
        if engine == "timescaledb":
            found = admin.execute(
                "SELECT default_version FROM pg_available_extensions WHERE name = 'timescaledb'"
            ).fetchone()
            if found is None:
                pytest.fail("the server at TEST_DATABASE_URL has no extension timescaledb", pytrace=False)
            versions = f"TimescaleDB {found[0]} on {versions}"
        yield Server(engine, admin, of, versions)


@contextmanager
def _container() -> Iterator[str]:
    # The client leaves a socket open where there is nobody to talk to.
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        pytest.skip(NO_TIMESCALEDB)
    # Half a second that most runs need not spend.
    import docker.client  # noqa: PLC0415
    import docker.errors  # noqa: PLC0415
    from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415

    try:
        with closing(docker.client.from_env(timeout=5)) as client:
            client.ping()
    except docker.errors.DockerException:
        pytest.skip(NO_TIMESCALEDB)
    options = ("fsync=off", "max_locks_per_transaction=256", "timescaledb.telemetry_level=off")
    command = " ".join(["postgres", *(f"-c {option}" for option in options)])
    with PostgresContainer(IMAGE, driver=None).with_command(command) as container:
        yield container.get_connection_url()


@contextmanager
def _template(server: Server) -> Iterator[Template]:
    from service.db.migrate import migrate  # noqa: PLC0415 - only tests with a database need it

    name = f"candlewick_{os.getpid()}"
    server.admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    try:
        migrate(server.url(name), server.engine)
        # TimescaleDB's scheduler looks in on every database, and one that is in use cannot be cloned.
        server.admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        yield Template(server, name)
    finally:
        _drop(server.admin, name)


def _clone(admin: psycopg.Connection[Any], template: str, name: str) -> None:
    make = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    deadline = time.monotonic() + 20
    while True:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [template])
        try:
            admin.execute(make)
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _drop(admin: psycopg.Connection[Any], name: str) -> None:
    admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def pytest_terminal_summary(terminalreporter: Any) -> None:  # noqa: ANN401 - pytest's own class is private
    """Say aloud which half of the tests did not run: a green run hides nothing."""
    stats = terminalreporter.stats
    marked = {
        outcome: [report for report in stats.get(outcome, []) if "timescaledb" in getattr(report, "keywords", {})]
        for outcome in ("passed", "failed", "error", "skipped")
    }
    versions = {value for reports in marked.values() for report in reports for _, value in report.user_properties}
    ran = len(marked["passed"]) + len(marked["failed"]) + len(marked["error"])
    if ran:
        terminalreporter.write_line(f"{', '.join(sorted(versions)) or 'TimescaleDB'}: {ran} tests ran", green=True)
    if marked["skipped"]:
        text = f"TimescaleDB: {len(marked['skipped'])} tests skipped: {NO_TIMESCALEDB}"
        terminalreporter.write_line(text, yellow=True, bold=True)
    absent = sum("Golden data" in str(report.longrepr) for report in stats.get("skipped", []))
    if absent:
        text = f"Golden data: {absent} tests skipped: no folder `shared` beside the repository"
        terminalreporter.write_line(text, yellow=True, bold=True)
