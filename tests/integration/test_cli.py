import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from service import __version__
from service.cli import main
from service.replay import ReplayConfig, ReplayServer, running
from tests.integration.backfilling import (
    KEY,
    command,
    environment,
    picture,
    span,
    started,
    value,
)

WEEK = ("--from", "2024-06-03", "--to", "2024-06-10")
Refused = Callable[..., tuple[int, str]]
on_one_engine = pytest.mark.parametrize("engine", ["plain"])
"""For what is told rather than stored: it does not depend on the engine."""


@pytest.fixture
def replay() -> Iterator[ReplayServer]:
    """A provider that wants the key."""
    with running(ReplayConfig(api_key=KEY)) as server:
        yield server


@pytest.fixture
def provider(replay: ReplayServer) -> dict[str, str]:
    """The variables that lead a command to the replay."""
    return {
        "POLYGON_API_KEY": KEY,
        "POLYGON_BASE_URL": replay.url,
        "POLYGON_RATE_LIMIT": "unlimited",
        "RETENTION_1M": "off",
    }


@pytest.fixture
def env(provider: dict[str, str], database: str, engine: str) -> dict[str, str]:
    """The variables of a command with a database of the test's own."""
    return environment(**provider, DATABASE_URL=database, ENGINE=engine)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Refused]:
    """Run a command in this process; returns its exit code and the one line on stderr."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: str, **variables: str) -> tuple[int, str]:
        for name, text in variables.items():
            monkeypatch.setenv(name, text)
        with pytest.raises(SystemExit) as ended:
            main(words)
        told = capsys.readouterr()
        assert told.out == ""
        lines = told.err.splitlines()
        assert len(lines) == 1, told.err
        assert lines[0].startswith("candlewick: ")
        code = ended.value.code
        assert isinstance(code, int)
        return code, lines[0].removeprefix("candlewick: ")

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "required: COMMAND (see candlewick --help)"),
        (["backfil"], "invalid choice: 'backfil'"),
        (["backfill", "--dayz", "3"], "unrecognized arguments: --dayz"),
        (["backfill"], "name the symbols to backfill, or --all"),
        (["backfill", "--all", "EURUSD"], "name the symbols to backfill, or --all"),
        (["backfill", "EURUSD", "--days", "0"], "--days 0: give a whole number"),
        (["backfill", "EURUSD", "--days", "-3"], "--days -3: give a whole number"),
        (["backfill", "EURUSD", "--days", "abc"], "--days abc: give a whole number"),
        (["backfill", "EURUSD", "--days", "1.5"], "--days 1.5: give a whole number"),
        (["backfill", "EURUSD", "--days", "9" * 5000], "give a whole number"),
        (["backfill", "EURUSD", "--days", "3", "--from", "2024-01-01"], "--days goes without --from and --to"),
        (["backfill", "EURUSD", "--days", "3", "--to", "2024-01-01"], "--days goes without --from and --to"),
        (["backfill", "EURUSD", "--to", "2024-01-01"], "--to needs --from"),
        (["backfill", "EURUSD", "--from", "2024-01-02", "--to", "2024-01-01"], "--from 2024-01-02 does not lie before"),
        (["backfill", "EURUSD", "--from", "2024-01-02", "--to", "2024-01-02"], "does not lie before 2024-01-02"),
        (["backfill", "EURUSD", "--from", "2199-01-01"], "--from 2199-01-01 does not lie before now"),
        (["backfill", "EURUSD", "--from", "yesterday"], "--from yesterday: give a date (2024-01-31)"),
        (["backfill", "EURUSD", "--from", "2024-02-30"], "--from 2024-02-30: give a date"),
        (["backfill", "EURUSD", "--from", "0001-01-01T00:00+14:00"], "--from 0001-01-01T00:00+14:00: give a date"),
        (["backfill", "EURUSD", "--from", "2024-01-01", "--to", "x"], "--to x: give a date"),
        (["backfill", "EURUSB", "--days", "3"], "unknown symbol 'EURUSB'; nearest: EURUSD"),
        (["backfill", "BTCUSD", "C:EURUSD", "--days", "3"], "unknown symbol 'C:EURUSD'; nearest: EURUSD"),
        (["backfill", "?", "--days", "3"], "unknown symbol '?'"),
        (["sync", "EURUSB"], "unknown symbol 'EURUSB'; nearest: EURUSD"),
        (["sync", "BTCUSD", "nosuch"], "unknown symbol 'NOSUCH'"),
        (["sync", "--days", "3"], "unrecognized arguments: --days"),
        (["worker", "EURUSD"], "unrecognized arguments: EURUSD"),
        (["serve", "--backfill"], "unrecognized arguments: --backfill"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_line(
    plain_database: dict[str, str], refused: Refused, words: list[str], told: str
) -> None:
    """Exit code 2, and nothing was asked for."""
    code, line = refused(*words, **plain_database)
    assert code == 2
    assert told in line
    assert (
        value(plain_database["DATABASE_URL"], "SELECT count(*) FROM market_data.sync_state WHERE wanted <> '{}'") == 0
    )


@pytest.fixture(scope="module")
def plain_database(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Variables of a migrated database that no test changes: made once."""
    template = request.getfixturevalue("plain_template")
    name = f"{template.name}_cli"
    make = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template.name))
    template.server.admin.execute(make)
    yield {"DATABASE_URL": template.server.url(name), "ENGINE": "plain", "POLYGON_API_KEY": KEY}
    template.server.admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.mark.parametrize(
    ("words", "variables", "told"),
    [
        (["backfill", "EURUSD"], {"POLYGON_API_KEY": ""}, "POLYGON_API_KEY: is not set"),
        (["worker"], {"POLYGON_API_KEY": ""}, "POLYGON_API_KEY: is not set"),
        (["sync"], {"POLYGON_API_KEY": ""}, "POLYGON_API_KEY: is not set"),
        (["serve"], {"ENABLE_SYNC_SCHEDULER": "maybe"}, "ENABLE_SYNC_SCHEDULER: 'maybe' is refused"),
        (["backfill", "EURUSD"], {"POLYGON_RATE_LIMIT": "0"}, "POLYGON_RATE_LIMIT: '0' is refused"),
        (["migrate"], {"ENGINE": "oracle"}, "ENGINE: 'oracle' is refused"),
        (["serve"], {"PORT": "http"}, "PORT: 'http' is refused"),
        (["serve"], {"HOST": "192.0.2.1"}, "HOST: cannot listen on 192.0.2.1:8001"),
        (["serve"], {"HOST": "no such host"}, "HOST: 'no such host' is refused"),
        (["serve"], {"DATABASE_URL": "mysql://nowhere/x"}, "DATABASE_URL: what is set is refused"),
        (["serve"], {"RETENTION_1H": "1 year"}, "RETENTION_1H: 365 days is too short"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(
    plain_database: dict[str, str], refused: Refused, words: list[str], variables: dict[str, str], told: str
) -> None:
    """Exit code 2, and the variable's name first."""
    code, line = refused(*words, **(plain_database | variables))
    assert (code, line.startswith(told)) == (2, True), line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "many"], "--port: 'many' is not a whole number"),
        (["--bars", "EURUSD"], "--bars: 'EURUSD' is not SYMBOL=CSV"),
        (["--bars", "EURUSD=nowhere.csv"], "--bars: cannot read nowhere.csv"),
        (["--now", "noon"], "--now: 'noon' is not a time"),
        (["--fault-kinds", "bad_mood"], "--fault-kinds: unknown fault 'bad_mood'"),
        (["--fault-rate", "2"], "--fault-rate: '2' is not a number from 0 to 1"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_an_option_of_the_replay_that_cannot_be_meant_is_told_in_one_line(
    refused: Refused, words: list[str], told: str
) -> None:
    """Exit code 2, and the option's name."""
    code, line = refused("replay", *words)
    assert (code, line.startswith(told)) == (2, True), line


def test_a_database_that_was_never_migrated_is_told_in_one_line(
    empty_database: str, engine: str, refused: Refused
) -> None:
    """Exit code 1, and what to run, before anything is fetched or served."""
    variables = {"DATABASE_URL": empty_database, "ENGINE": engine, "POLYGON_API_KEY": KEY, "PORT": "0"}
    for words in (["serve"], ["backfill", "--all"], ["worker"], ["sync"]):
        code, line = refused(*words, **variables)
        assert code == 1
        assert line.endswith("run `candlewick migrate`")


def test_a_database_that_cannot_be_reached_is_told_in_one_line(refused: Refused) -> None:
    """Exit code 1, where it was looked for, and not the password."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    variables = {"DATABASE_URL": f"postgresql://someone:s3cret@127.0.0.1:{port}/x", "POLYGON_API_KEY": KEY, "PORT": "0"}
    for words in (["serve"], ["backfill", "--all"], ["migrate"], ["worker"], ["sync", "EURUSD"]):
        code, line = refused(*words, **variables)
        assert code == 1
        assert f"cannot reach the database at 127.0.0.1:{port}" in line
        assert "s3cret" not in line


def test_a_range_below_the_floor_is_refused(
    database: str, engine: str, provider: dict[str, str], refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """On TimescaleDB, naming the setting; whole days that just fit into it do fit. The plain engine keeps all."""
    variables = provider | {"DATABASE_URL": database, "ENGINE": engine, "RETENTION_1M": "30 days"}
    if engine == "timescaledb":
        code, line = refused("backfill", "BTCUSD", "--days", "31", **variables)
        assert code == 2
        assert re.search(r"lies below \d{4}-\d\d-\d\d, .*RETENTION_1M", line)
        assert value(database, "SELECT count(*) FROM market_data.sync_state WHERE wanted <> '{}'") == 0
    done = command("backfill", "BTCUSD", "--days", "30", env=environment(**variables))
    assert (done.returncode, done.stderr) == (0, "")
    assert capsys.readouterr().out == ""


def test_a_busy_port_is_told_in_one_line(plain_database: dict[str, str], refused: Refused) -> None:
    """Exit code 2, for PORT is to be changed; without a traceback, and before a worker would begin."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refused("serve", **plain_database, PORT=str(port))
        assert (code, line) == (2, f"PORT: cannot listen on 127.0.0.1:{port}: Address already in use")
        code, line = refused("replay", "--port", str(port))
        assert (code, line.startswith(f"--port: cannot listen on 127.0.0.1:{port}: ")) == (2, True)


def test_version_and_help_are_told_without_any_setting() -> None:
    """On stdout, with exit code 0, as a program and as a module."""
    bad = environment(PORT="no port")
    assert command("--version", env=bad).stdout == f"candlewick {__version__}\n"
    module = subprocess.run([sys.executable, "-m", "service", "--help"], capture_output=True, text=True, check=True)
    assert module.stderr == ""
    for word in ("migrate", "backfill", "sync", "worker", "serve", "replay", "demo"):
        assert f"\n    {word} " in module.stdout
    assert "--while-stdin-is-open" not in command("worker", "--help", env=bad).stdout, "our own, not a user's"
    assert "--from WHEN" in command("backfill", "--help", env=bad).stdout


def test_migrate_works_from_any_folder_and_twice(empty_database: str, engine: str, tmp_path: Path) -> None:
    """It says what it found and what it made; the schema is there."""
    env = environment(DATABASE_URL=empty_database, ENGINE=engine)
    assert Path.cwd() == tmp_path
    first, second = command("migrate", env=env), command("migrate", env=env)
    assert (first.returncode, first.stderr, second.returncode, second.stderr) == (0, "", 0, "")
    assert re.fullmatch(r"schema \d{4}, was absent\n", first.stdout)
    assert re.fullmatch(r"schema \d{4} already there\n", second.stdout)
    assert value(empty_database, "SELECT count(*) FROM market_data.instruments") == 45


def test_plain_lines_tell_the_plan_first_and_the_sum_last(env: dict[str, str], replay: ReplayServer) -> None:
    """Where output is no terminal: one line for each thing that happened, and no control characters."""
    done = command("backfill", "eurusd", "BTCUSD", "EURUSD", *WEEK, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    plan, *middle, refreshing, summary = done.stdout.splitlines()
    requests = r"4 requests, about 17,280 bars, under a minute of waiting at no rate limit\."
    assert re.fullmatch(rf"Backfill of 2 symbols, \[2024-06-03 00:00, 2024-06-10 00:00\) UTC: {requests}", plan)
    assert sorted(line.split(":")[0] for line in middle) == ["BTCUSD", "EURUSD"]
    assert middle[-1].endswith(" changed bars (2/2)")
    assert refreshing == "All bars are stored; refreshing the last aggregates."
    total = sum(len(replay.bars(symbol, *span("2024-06-03", "2024-06-10"))) for symbol in ("EURUSD", "BTCUSD"))
    told = rf"Bars: {total:,} new, 0 changed, 0 unchanged, 0 rejected; 4 requests; \d+\.\d s\."
    assert re.fullmatch(told, summary)
    again = command("backfill", "EURUSD", "BTCUSD", *WEEK, env=env)
    assert again.returncode == 0
    assert again.stdout.startswith("Nothing to fetch: 2 symbols are covered for [2024-06-03 00:00, 2024-06-10 00:00).")
    assert "0 new, 0 changed, 0 unchanged, 0 rejected; 0 requests" in again.stdout.splitlines()[-1]


@on_one_engine
def test_on_a_terminal_each_symbol_has_a_bar(env: dict[str, str]) -> None:
    """The plan stands above the bars, the sum below them."""
    env |= {"TERM": "xterm-256color", "COLUMNS": "110", "LINES": "40"}
    ours, theirs = pty.openpty()
    with started("backfill", "EURUSD", "BTCUSD", *WEEK, env=env, output=theirs) as process:
        os.close(theirs)
        shown = _read_terminal(ours)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "\n")
    assert text.startswith("Backfill of 2 symbols, [2024-06-03 00:00, 2024-06-10 00:00) UTC: 4 requests")
    for symbol in ("EURUSD", "BTCUSD"):
        assert re.search(rf"{symbol} +━{{20,}} 2/2 +[0-9,]+ bars 0:00:\d\d", text)
    assert re.search(r"Bars: 1\d,\d{3} new, .* s\.\s*$", text)
    assert shown.endswith("\r\n")
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l"), "the cursor is shown again"


def _read_terminal(descriptor: int) -> str:
    """All that a program shows until it ends; what it asks the terminal is not answered."""
    parts = []
    with suppress(OSError):  # its end
        while select.select([descriptor], [], [], 30)[0]:
            parts.append(os.read(descriptor, 65_536))
    os.close(descriptor)
    return b"".join(parts).decode()


@on_one_engine
def test_output_that_nobody_reads_ends_it_without_a_traceback(env: dict[str, str]) -> None:
    """As `| head -1` does: exit code 1 and one line; what was stored stays."""
    with started("backfill", "SPX500", "DAX40", "--from", "2024-01-01", "--to", "2024-06-10", env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 1
        assert process.stderr.read() == "candlewick: [Errno 32] Broken pipe\n"


@on_one_engine
def test_failures_end_in_exit_code_one(env: dict[str, str]) -> None:
    """The reasons are told when they happen and again at the end, with what to do; the rest is stored."""
    with running(ReplayConfig(denied=("I:",))) as replay:
        done = command("backfill", "SPX500", "BTCUSD", *WEEK, env=env | {"POLYGON_BASE_URL": replay.url})
    assert (done.returncode, done.stderr) == (1, "")
    *_, summary, failed, advice = done.stdout.splitlines()
    assert "requests" in summary
    assert failed.startswith("FAILED SPX500: You are not entitled to this data.")
    assert advice.startswith("What was stored stays. Run the same command again")


@on_one_engine
def test_a_refused_key_is_told_by_its_variable(env: dict[str, str], replay: ReplayServer) -> None:
    """After one call, with exit code 1."""
    done = command("backfill", "--all", *WEEK, env=env | {"POLYGON_API_KEY": "wr0ng"})
    assert (done.returncode, len(replay.requests)) == (1, 1)
    assert "set POLYGON_API_KEY to a valid one" in done.stdout
    assert "wr0ng" not in done.stdout + done.stderr


def test_bars_of_another_source_are_refused_in_one_line(env: dict[str, str], database: str) -> None:
    """Invented bars never reach a database that holds real ones."""
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE market_data.installation SET source = 'polygon'")
    done = command("backfill", "BTCUSD", "EURUSD", *WEEK, env=env)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(r"candlewick: this database holds bars of 'polygon' .* 'replay:synthetic'", line)
    assert picture(database) == {}


def test_the_key_is_nowhere(env: dict[str, str], database: str) -> None:
    """Neither in what is told and logged, at its most talkative and with a provider at fault, nor in the database."""
    faults = ("server_error:500", "broken_json", "page_cycle", "broken_connection")
    with running(ReplayConfig(api_key=KEY, faults=faults, denied=("I:",))) as replay:
        env |= {"LOG_LEVEL": "DEBUG", "POLYGON_BASE_URL": replay.url}
        told = command("backfill", "BTCUSD", "SPX500", *WEEK, env=env)
        assert "the provider is asked again" in told.stderr
        assert {served.key_in for served in replay.requests} == {"header"}
        assert not any("apiKey" in served.query for served in replay.requests)
    with running(ReplayConfig(api_key="another")) as replay:
        refused = command("backfill", "ETHUSD", *WEEK, env=env | {"POLYGON_BASE_URL": replay.url})
    assert (told.returncode, refused.returncode) == (1, 1)
    assert KEY not in told.stdout + told.stderr + refused.stdout + refused.stderr
    assert "s3cret" not in told.stdout
    with psycopg.connect(database) as conn:
        tables = [row[0] for row in conn.execute(_TABLES).fetchall()]
        assert {"sync_state", "instruments", "candles_1m", "provider_calls"} <= set(tables)
        for table in tables:
            query = sql.SQL("SELECT count(*) FROM {} AS t WHERE t::text LIKE {}")
            where = sql.Identifier("market_data", table), sql.Literal(f"%{KEY}%")
            assert conn.execute(query.format(*where)).fetchone() == (0,), table


_TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'market_data'"
