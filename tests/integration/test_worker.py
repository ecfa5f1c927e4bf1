"""The worker as a process of its own: whatever ends it, what it leaves is whole, and the next one goes on from there.

How long it took is printed: `pytest -s` shows it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import LiteralString

import psutil
import psycopg
import pytest
from psycopg import sql

from service.replay import ReplayConfig, ReplayServer, running
from tests.integration.backfilling import KEY, environment, started, value
from tests.integration.working import (
    ask_further_back,
    assert_undisturbed,
    calls_made,
    end,
    finish,
    holder,
    holds,
    keep_only,
    up_to_date,
    wait_until,
    working,
)

LIMIT = 2.0
"""Seconds from a signal to the end: the aim is one, the rest is for a machine that has other work as well."""
KILLS = 6
"""On each engine."""


@pytest.fixture
def replay() -> Iterator[ReplayServer]:
    """A provider that takes its time, so that a signal meets every state of a pass."""
    with running(ReplayConfig(latency=150, api_key=KEY)) as server:
        yield server


@pytest.fixture
def url(database: str) -> str:
    """The test's database, with four active symbols."""
    return keep_only(database)


@pytest.fixture
def env(url: str, engine: str, replay: ReplayServer) -> dict[str, str]:
    """The worker's variables."""
    return environment(
        DATABASE_URL=url,
        ENGINE=engine,
        POLYGON_API_KEY=KEY,
        POLYGON_BASE_URL=replay.url,
        POLYGON_RATE_LIMIT="unlimited",
        RETENTION_1M="off",
        BACKFILL_DAYS="85",
        PORT="0",
    )


@contextmanager
def _held_up(url: str, relation: sql.Composable) -> Iterator[None]:
    """Nobody else can write to a relation meanwhile; begins when somebody tries to, for as long as that takes."""
    with psycopg.connect(url) as conn, psycopg.connect(url, autocommit=True) as looking:
        conn.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(relation))

        def waits() -> bool:
            row = looking.execute(_BLOCKED_BY, [conn.info.backend_pid]).fetchone()
            return row is not None and row[0] > 0

        wait_until(waits, f"the worker writes to {relation.as_string(conn)}")
        yield


def _hourly(url: str, engine: str) -> sql.Composable:
    """Where the candles of an hour are stored."""
    if engine == "plain":
        return sql.Identifier("market_data", "candles_1h")
    query = (
        "SELECT materialization_hypertable_schema, materialization_hypertable_name"
        " FROM timescaledb_information.continuous_aggregates WHERE view_name = 'candles_1h'"
    )
    with psycopg.connect(url) as conn:
        row = conn.execute(query).fetchone()
    assert row is not None
    return sql.Identifier(*row)


def test_a_signal_ends_it_within_a_second_with_nothing_half_done(
    url: str, engine: str, env: dict[str, str], replay: ReplayServer
) -> None:
    """TERM or Ctrl-C, amid a call, a store, a refresh or wherever: exit code 130; the next worker completes it all."""
    took = {}
    signals = [signal.SIGTERM, signal.SIGINT]
    with working(env, url) as process:
        calls_made(replay, 1)
        took["calling"], _ = end(process, signals[0])
    moments = {"storing": sql.Identifier("market_data", "candles_1m"), "refreshing": _hourly(url, engine)}
    for (name, relation), number in zip(moments.items(), signals, strict=True):
        with working(env, url) as process, _held_up(url, relation):
            took[name], _ = end(process, number)
    chance = Random(engine)  # noqa: S311 - repeatable
    for _ in range(3):
        replay.requests.clear()
        with working(env, url) as process:
            if not up_to_date(url):
                calls_made(replay, 1)
            seconds = chance.uniform(0.0, 1.0)
            time.sleep(seconds)
            took[f"{seconds:.2f} s after the first call"], _ = end(process, chance.choice(signals))
        assert value(url, _CLIENTS) == 1, "we alone"
    with working(env, url) as process:
        finish(url)
        took["idle"], _ = end(process, signals[1])
    assert_undisturbed(url, replay)
    print(f"\n{engine}: seconds from a signal to the end: { {name: round(one, 2) for name, one in took.items()} }")  # noqa: T201
    assert max(took.values()) < LIMIT, took


@pytest.mark.slow
def test_killed_at_any_moment_the_next_worker_goes_on(
    url: str, engine: str, env: dict[str, str], replay: ReplayServer
) -> None:
    """Six kills at random moments, then one worker that is left alone: bars, candles and ledger as if undisturbed."""
    chance = Random(engine)  # noqa: S311 - repeatable
    for kill in range(KILLS):
        if up_to_date(url):
            ask_further_back(url, 56)
        with started("worker", env=env) as process:
            if kill:
                holds(url, process.pid)
            time.sleep(chance.uniform(0.0, 1.0))
            assert process.poll() is None
            process.kill()
            process.wait(10)
    with working(env, url) as process:
        finish(url)
        end(process, signal.SIGTERM)
    assert_undisturbed(url, replay)


def test_serve_starts_a_killed_worker_again_and_leaves_none_behind(url: str, env: dict[str, str]) -> None:
    """The child that was killed is followed by another; when `serve` itself is killed, the child ends by itself."""
    with started("serve", env=env) as process:
        first = _child(process)
        holds(url, first.pid)
        first.kill()
        wait_until(lambda: holder(url) != first.pid, "another worker takes over", 20)
        second = _child(process)
        assert second.pid == holder(url)
        process.kill()
        process.wait(10)
        took = wait_until(lambda: _gone(second), "the worker of a killed server ends", 20)
        print(f"\nthe worker of a killed `serve` was gone after {took:.2f} s")  # noqa: T201
        _, err = process.communicate(timeout=20)
    assert "the worker ended with code -9; it is started again in 2 s" in err
    assert value(url, _CLIENTS) == 1, "we alone"


def _gone(process: psutil.Process) -> bool:
    """Whether it ended, even if nobody has asked how yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _child(process: "subprocess.Popen[str]") -> psutil.Process:
    found: list[psutil.Process] = []

    def there() -> bool:
        found[:] = [one for one in psutil.Process(process.pid).children() if "worker" in one.cmdline()]
        return bool(found)

    wait_until(there, "serve has a worker")
    return found[0]


@pytest.mark.parametrize("engine", ["plain"], indirect=True)
def test_a_database_that_is_away_does_not_keep_it_from_ending(
    url: str, env: dict[str, str], plain_server: object
) -> None:
    """While it waits for the database it ends on a signal as soon as ever."""
    admin = plain_server.admin  # type: ignore[attr-defined]
    with working(env, url) as process:
        finish(url)
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(str(name))))
        try:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            assert process.stderr is not None
            while "begins anew" not in process.stderr.readline():
                pass
            began = time.monotonic()
            os.kill(process.pid, signal.SIGTERM)
            process.wait(20)
            assert time.monotonic() - began < LIMIT
        finally:
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(str(name))))


_CLIENTS: LiteralString = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
"""
_BLOCKED_BY: LiteralString = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND %s = ANY(pg_blocking_pids(pid))
"""
