"""The worker while its database fails it: what was begun is rolled back and done again, and it goes on by itself."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from service.db import embedded
from service.db.migrate import migrate
from service.replay import ReplayConfig, ReplayServer, running
from tests.integration.backfilling import KEY, environment, started, value
from tests.integration.working import (
    ask_further_back,
    assert_undisturbed,
    calls_made,
    finish,
    holder,
    keep_only,
    wait_until,
    working,
)


class Breakable(NamedTuple):
    """A database that can be taken away."""

    url: str
    break_off: Callable[[], object]
    """All of its connections, whatever they do."""
    go: Callable[[], object]
    """Until it is told to come back, nobody reaches it."""
    come: Callable[[], object]


@pytest.fixture
def replay() -> Iterator[ReplayServer]:
    """A provider that takes its time."""
    with running(ReplayConfig(latency=150, api_key=KEY)) as server:
        yield server


@pytest.fixture
def provider(replay: ReplayServer) -> dict[str, str]:
    """The worker's variables, but for the database. At this rate two calls are in flight at most."""
    return {
        "POLYGON_API_KEY": KEY,
        "POLYGON_BASE_URL": replay.url,
        "POLYGON_RATE_LIMIT": "100",
        "RETENTION_1M": "off",
        "BACKFILL_DAYS": "85",
        "PORT": "0",
    }


@pytest.fixture
def breakable(engine: str, request: pytest.FixtureRequest) -> Iterator[Breakable]:
    """Of the plain engine: a server of its own, stopped as by a crash. TimescaleDB's is shared: nobody is let in."""
    if engine == "plain":
        folder: Path = request.getfixturevalue("short_tmp")
        with embedded.start(folder / "data") as held:
            migrate(held.url, engine)
            yield _server_of_its_own(held)
        return
    url: str = request.getfixturevalue("database")
    yield _shut(url, request.getfixturevalue("timescaledb_server").admin)


def _server_of_its_own(held: embedded.Embedded) -> Breakable:
    server, url = held._server, held.url

    def go() -> None:
        server.programs.run("pg_ctl", "stop", "-D", str(server.home.cluster), "-m", "immediate")

    def break_off() -> None:
        go()
        server._run()

    return Breakable(url, break_off, go, server._run)


def _shut(url: str, admin: psycopg.Connection[Any]) -> Breakable:
    name = str(conninfo_to_dict(url)["dbname"])

    def let_in(word: LiteralString) -> None:
        change = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        admin.execute(change.format(sql.Identifier(name), sql.SQL(word)))

    def break_off() -> None:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    def go() -> None:
        let_in("false")
        break_off()

    return Breakable(url, break_off, go, lambda: let_in("true"))


def test_a_database_that_restarts_is_waited_for(
    breakable: Breakable, engine: str, provider: dict[str, str], replay: ReplayServer
) -> None:
    """Broken off twice amid its work, then away: `serve` answers 503 meanwhile, and both go on by themselves."""
    url = keep_only(breakable.url)
    env = environment(**provider, DATABASE_URL=url, ENGINE=engine)
    with started("serve", env=env) as process:
        assert process.stdout is not None
        address = next(word for word in process.stdout.readline().split() if word.startswith("http://"))

        def answer(path: str) -> int:
            return httpx.get(f"{address}{path}", timeout=30).status_code

        assert answer("/health") == 200
        for calls in (2, 5):
            calls_made(replay, calls)
            worker = holder(url)
            breakable.break_off()
        calls_made(replay, 8)
        breakable.go()
        began = time.monotonic()
        with ThreadPoolExecutor() as askers:
            assert list(askers.map(answer, ("/health", "/api/candles/BTCUSD?timeframe=1h"))) == [503, 503]
        breakable.come()
        waited = wait_until(lambda: answer("/health") == 200, "it serves again", 30)
        away = time.monotonic() - began
        finish(url)
        assert holder(url) == worker, "the same process goes on"
        assert answer("/api/candles/BTCUSD?timeframe=1h") == 200
        process.terminate()
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (130, "")
        assert "Traceback" not in err
    assert_undisturbed(url, replay)
    print(f"\n{engine}: served again {waited:.1f} s after the end of an outage of {away:.1f} s")  # noqa: T201


@pytest.fixture
def url(database: str) -> str:
    """The test's database, with four active symbols."""
    return keep_only(database)


def _let_fail(url: str, when: LiteralString, codes: LiteralString) -> None:
    """The last write of each piece's transaction fails.

    when: a condition over `turn`, which counts the writes that would be. codes: an array of SQLSTATEs, used in turn.
    """
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE SEQUENCE public.turns")
        conn.execute(sql.SQL(_FAIL).format(when=sql.SQL(when), codes=sql.SQL(codes)))
        conn.execute(
            "CREATE TRIGGER fail BEFORE UPDATE OF covered ON market_data.sync_state"
            " FOR EACH ROW EXECUTE FUNCTION public.fail()"
        )


def test_a_full_disk_is_told_and_waited_for(
    url: str, engine: str, provider: dict[str, str], replay: ReplayServer
) -> None:
    """Nothing of the pieces stays, the job's failure is in the database, and the same worker tries again soon."""
    env = environment(**provider, DATABASE_URL=url, ENGINE=engine)
    _let_fail(url, "true", "ARRAY['53100']")
    with working(env, url) as worker:
        wait_until(lambda: value(url, _SYNC_JOB) == "failed", "the failure is told")
        told = value(url, "SELECT message FROM market_data.jobs WHERE name = 'sync'")
        assert str(told).startswith("DiskFull: this write fails")
        assert value(url, "SELECT count(*) FROM market_data.candles_1m") == 0
        assert value(url, "SELECT count(*) FROM market_data.candles_1d") == 0
        assert value(url, "SELECT count(*) FROM market_data.changes") == 0
        assert value(url, "SELECT count(*) FROM market_data.sync_state WHERE covered <> '{}'") == 0
        failed = value(url, "SELECT started_at FROM market_data.jobs WHERE name = 'sync'")
        again = wait_until(
            lambda: value(url, "SELECT started_at FROM market_data.jobs WHERE name = 'sync'") != failed, "a second try"
        )
        assert again < 20, "not only a minute later"
        with psycopg.connect(url) as conn:
            conn.execute("DROP TRIGGER fail ON market_data.sync_state")
        finish(url)
        assert (holder(url), worker.poll()) == (worker.pid, None), "the loop goes on"
        wait_until(lambda: value(url, _SYNC_JOB) == "ok", "it is told that all is well")
        worker.terminate()
        worker.wait(20)
    assert_undisturbed(url, replay)


def test_lost_conflicts_are_begun_again(url: str, engine: str, provider: dict[str, str], replay: ReplayServer) -> None:
    """Deadlocks, locks not had and serialization failures cost a second try of that piece, and no call and no bar."""
    env = environment(**provider, DATABASE_URL=url, ENGINE=engine)
    _let_fail(url, "turn IN (1, 4, 9, 16)", "ARRAY['40P01', '55P03', '40001']")
    with working(env, url) as worker:
        finish(url)
        ask_further_back(url, 30)
        finish(url)
        worker.terminate()
        _, err = worker.communicate(timeout=20)
        assert " job sync failed" not in err
    assert value(url, "SELECT last_value > 16 FROM public.turns") is True
    served = [request.path for request in replay.requests]
    assert len(served) == len(set(served)), "what could not be stored at first is not fetched again"
    assert_undisturbed(url, replay)


_SYNC_JOB: LiteralString = "SELECT (SELECT result FROM market_data.jobs WHERE name = 'sync')"
_FAIL: LiteralString = """
    CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        codes text[] := {codes};
        turn bigint := nextval('public.turns');
    BEGIN
        IF {when} THEN
            RAISE EXCEPTION 'this write fails'
                USING ERRCODE = codes[1 + turn % cardinality(codes)];
        END IF;
        RETURN NEW;
    END $$
"""
