import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from psycopg import sql

from service import __version__
from service.cli import main
from service.db import embedded
from service.ranges import Range
from service.replay import ReplayConfig, ReplayServer, running
from tests.integration.backfilling import (
    KEY,
    TEN,
    assert_same,
    at,
    command,
    environment,
    expected,
    picture,
    span,
    started,
    value,
)

WEEK = ("--from", "2024-06-03", "--to", "2024-06-10")
Refused = Callable[..., tuple[int, str]]


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
    ],
)
def test_what_cannot_be_meant_is_told_in_one_line(
    plain_database: dict[str, str], refused: Refused, words: list[str], told: str
) -> None:
    """Exit code 2, and nothing was asked for."""
    code, line = refused(*words, **plain_database)
    assert code == 2
    assert told in line
    assert value(plain_database["DATABASE_URL"], "SELECT count(*) FROM market_data.sync_state WHERE wanted <> '{}'") == 0


@pytest.fixture(scope="module")
def plain_database(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Variables of a migrated database that no test changes: made once."""
    template = request.getfixturevalue("plain_template")
    name = f"{template.name}_cli"
    make = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template.name))
    template.server.admin.execute(make)
    yield {"DATABASE_URL": template.server.url(name), "ENGINE": "plain", "POLYGON_API_KEY": KEY}
    template.server.admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
