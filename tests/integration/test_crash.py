import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import psutil
import psycopg
import pytest

from service.db import embedded
from service.ranges import Range, Ranges
from service.replay import ReplayConfig, ReplayServer, running
from tests.integration.backfilling import (
    KEY,
    NOW,
    assert_same,
    at,
    command,
    environment,
    expected,
    ledger,
    picture,
    started,
    value,
)

KILLS = 10
"""On each engine."""
SYMBOLS = ("SPX500", "DAX40", "EURUSD", "NAS100")
END = at("2024-06-11")


@pytest.fixture
def replay() -> Iterator[ReplayServer]:
    """A provider that takes its time, so that a kill meets every state of a run."""
    with running(ReplayConfig(now=NOW, latency=100)) as server:
        yield server


@pytest.fixture
def env(replay: ReplayServer) -> dict[str, str]:
    """The command's variables, but for the database."""
    return environment(
        POLYGON_API_KEY=KEY, POLYGON_BASE_URL=replay.url, POLYGON_RATE_LIMIT="unlimited", RETENTION_1M="off"
    )


def _words(start: datetime) -> tuple[str, ...]:
    return ("backfill", *SYMBOLS, "--from", start.isoformat(), "--to", END.isoformat())


def _killed(start: datetime, env: dict[str, str], seconds: float, *, planned: bool) -> bool:
    """Kill a backfill so long after its start, or after its plan is told; False if it ended before."""
    with started(*_words(start), env=env) as process:
        assert process.stdout is not None
        if planned:
            process.stdout.readline()
        time.sleep(seconds)
        if process.poll() is not None:
            assert process.returncode == 0
            return False
        process.kill()
        process.wait(10)
        return True


def _assert_as_if_undisturbed(url: str, replay: ReplayServer, start: datetime) -> None:
    asked = Range(start, END)
    assert_same(picture(url), expected(replay, SYMBOLS, asked))
    for symbol in SYMBOLS:
        sets = {"wanted": Ranges([asked]), "covered": Ranges([asked]), "unavailable": Ranges()}
        assert ledger(url, symbol) == sets
    assert value(url, "SELECT count(*) FROM market_data.pending_refreshes") == 0
    assert value(url, "SELECT count(*) FROM market_data.bar_revisions") == 0
    distinct = "SELECT count(DISTINCT (symbol, range)) FROM market_data.changes"
    assert value(url, "SELECT count(*) FROM market_data.changes") == value(url, distinct)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(
    database: str, engine: str, env: dict[str, str], replay: ReplayServer
) -> None:
    """Ten kills at random moments, then one run to the end: bars, candles and ledger as if nothing had happened."""
    env |= {"DATABASE_URL": database, "ENGINE": engine}
    chance = Random(engine)  # noqa: S311 - repeatable
    start, kills = END - timedelta(days=84), 0
    while kills < KILLS:
        early = kills < 2
        if _killed(start, env, chance.uniform(0.3, 0.9) if early else chance.uniform(0.0, 0.8), planned=not early):
            kills += 1
        else:
            start -= timedelta(days=56)
    done = command(*_words(start), env=env)
    assert (done.returncode, done.stderr) == (0, "")
    _assert_as_if_undisturbed(database, replay, start)


def test_a_database_that_breaks_off_ends_it_and_the_next_run_goes_on(
    database: str, env: dict[str, str], engine: str, replay: ReplayServer
) -> None:
    """Exit code 1 and the reason without a traceback; nothing half-stored is left."""
    env |= {"DATABASE_URL": database, "ENGINE": engine}
    start = END - timedelta(days=84)
    with started(*_words(start), env=env) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        with psycopg.connect(database, autocommit=True) as conn:
            while process.poll() is None:
                conn.execute(_BREAK_OFF)
                time.sleep(0.05)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    told = r"candlewick: the (database (failed: |did not answer)|connection that holds .* was lost)"
    assert re.match(told, err.splitlines()[-1])
    assert "Traceback" not in err
    assert command(*_words(start), env=env).returncode == 0
    _assert_as_if_undisturbed(database, replay, start)


@pytest.mark.slow
def test_killed_with_its_embedded_database_it_goes_on(
    short_tmp: Path, env: dict[str, str], replay: ReplayServer
) -> None:
    """Whether the database lives on, as after a kill of the command, or dies with it: the same command goes on."""
    start = END - timedelta(days=56)
    env |= {"DATA_DIR": str(short_tmp / "data")}
    assert command("migrate", env=env).returncode == 0
    for both in (False, True):
        assert _killed(start, env, 0.25, planned=True)
        if both:
            server = psutil.Process(int((short_tmp / "data/cluster/postmaster.pid").read_text().split()[0]))
            family = [server, *server.children()]
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    os.kill(process.pid, signal.SIGKILL)
            psutil.wait_procs(family, 10)
    done = command(*_words(start), env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (short_tmp / "data/cluster/postmaster.pid").exists()
    with embedded.start(short_tmp / "data") as held:
        _assert_as_if_undisturbed(held.url, replay, start)


_BREAK_OFF = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
