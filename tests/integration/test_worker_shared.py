"""Several processes that want to fetch for one database: one calls, the others wait, ask it, or take over.

Each process has a provider of its own here, all with the same bars: so it shows who calls.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import LiteralString

import pytest

from service.coverage import minute_floor
from service.ranges import Range, Ranges
from service.replay import ReplayConfig, ReplayServer, running
from service.timeframes import utc_now
from tests.integration.backfilling import KEY, asked_ranges, command, environment, ledger, started, value
from tests.integration.working import (
    SYMBOLS,
    assert_undisturbed,
    break_lock,
    calls_made,
    end,
    finish,
    holder,
    holds,
    keep_only,
    wait_until,
    working,
)

TAKES_OVER = 10.0
"""Seconds from the end of the process that calls to the first call of another one."""
on_one_engine = pytest.mark.parametrize("engine", ["plain"], indirect=True)


@pytest.fixture
def replays() -> Iterator[list[ReplayServer]]:
    """Three doors to the same market."""
    with ExitStack() as stack:
        yield [stack.enter_context(running(ReplayConfig(latency=250, api_key=KEY))) for _ in range(3)]


@pytest.fixture
def url(database: str) -> str:
    """The test's database, with four active symbols."""
    return keep_only(database)


@pytest.fixture
def envs(url: str, engine: str, replays: list[ReplayServer]) -> list[dict[str, str]]:
    """The variables of three processes. At this rate two calls are in flight at most."""
    return [
        environment(
            DATABASE_URL=url,
            ENGINE=engine,
            POLYGON_API_KEY=KEY,
            POLYGON_BASE_URL=replay.url,
            POLYGON_RATE_LIMIT="100",
            RETENTION_1M="off",
            BACKFILL_DAYS="140",
        )
        for replay in replays
    ]


def _stand_by(url: str, count: int) -> None:
    """Wait until so many processes stand by."""
    wait_until(lambda: value(url, _STANDING_BY) == count, f"{count} processes stand by")


def _settled(url: str) -> dict[str, Ranges]:
    """What is covered, by ticker."""
    return {ticker: ledger(url, symbol)["covered"] for symbol, ticker in TICKERS.items()}


def _assert_new(asked: list[tuple[str, Range]], covered: dict[str, Ranges]) -> None:
    """None of these calls asked for what was covered before."""
    for ticker, part in asked:
        assert not covered[ticker] & Ranges([part]), (ticker, part)


def _assert_apart(asked: list[tuple[str, Range]]) -> None:
    """No minute was asked for twice, but for the edge, which is asked for until it settles."""
    today = utc_now() - timedelta(days=2)
    seen: dict[str, Ranges] = {}
    for ticker, part in asked:
        older = Ranges.of(part.start, min(part.end, today))
        assert not seen.get(ticker, Ranges()) & older, (ticker, part)
        seen[ticker] = seen.get(ticker, Ranges()) | older


def test_another_worker_takes_over_and_never_two_call_at_once(
    url: str, engine: str, envs: list[dict[str, str]], replays: list[ReplayServer]
) -> None:
    """Within 10 s, when the first is killed and when its lock is lost; what is covered is not asked for again."""
    one, two, three = replays
    with working(envs[0], url) as first, started("worker", env=envs[1]) as second:
        _stand_by(url, 1)
        calls_made(one, 4)
        assert two.requests == [], "it stands by"
        covered = _settled(url)
        began = time.monotonic()
        first.kill()
        calls_made(two, 1)
        killed = time.monotonic() - began
        _assert_new(asked_ranges(two), covered)
        with started("worker", env=envs[2]) as third:
            _stand_by(url, 1)
            calls_made(two, 4)
            assert three.requests == []
            covered = _settled(url)
            before = len(two.requests)
            began = time.monotonic()
            break_lock(url)
            wait_until(lambda: three.requests or holder(url) == third.pid, "the third takes over")
            calls_made(three, 1)
            broken = time.monotonic() - began
            stopped = len(two.requests)
            _assert_new([*asked_ranges(two)[before + 2 :], *asked_ranges(three)], covered)
            _stand_by(url, 1)
            finish(url)
            assert len(two.requests) == stopped, "the second calls no more"
            third.kill()
            holds(url, second.pid)
            end(second, signal.SIGTERM)
    for replay in replays:
        _assert_apart(asked_ranges(replay))
    assert_undisturbed(url, one)
    print(f"\n{engine}: taken over {killed:.2f} s after a kill, {broken:.2f} s after the loss of the lock")  # noqa: T201
    assert max(killed, broken) < TAKES_OVER


def test_a_backfill_and_a_sync_beside_a_worker_let_it_do_the_work(
    url: str, envs: list[dict[str, str]], replays: list[ReplayServer]
) -> None:
    """They call nobody, end with exit code 0 when their part is done, and nothing is fetched twice."""
    days = 168
    with working(envs[0], url) as worker:
        calls_made(replays[0], 2)
        began = utc_now()
        told = command("sync", "btcusd", "SPX500", env=envs[1])
        assert (told.returncode, told.stderr) == (0, "")
        first, last = told.stdout.splitlines()
        assert first == "A worker is running: it is asked for 2 symbols first."
        assert last.startswith("Done in ")
        assert _looked_at(url, "BTCUSD") >= minute_floor(began)
        filled = command("backfill", "EURUSD", "DAX40", "--days", str(days), env=envs[2])
        assert (filled.returncode, filled.stderr) == (0, "")
        assert "Another process is fetching for this database: waiting for it." in filled.stdout
        assert filled.stdout.splitlines()[-1].startswith("Another process fetched it; ")
        for symbol in ("EURUSD", "DAX40"):
            start = began.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days)
            assert Ranges.of(start, began - timedelta(days=3)) - ledger(url, symbol)["covered"] == Ranges()
        finish(url)
        again = command("sync", env=envs[1])
        assert (again.returncode, again.stderr) == (0, "")
        end(worker, signal.SIGTERM)
    assert [replays[place].requests for place in (1, 2)] == [[], []]
    _assert_apart(asked_ranges(replays[0]))
    assert_undisturbed(url, replays[0])


def test_a_sync_alone_makes_one_pass(
    url: str, engine: str, envs: list[dict[str, str]], replays: list[ReplayServer]
) -> None:
    """Without a worker it brings the edge up to now by itself, says so, and leaves older work to others."""
    del engine
    began = minute_floor(utc_now())
    done = command("sync", "BTCUSD", "SPX500", env=envs[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("calls: 2 edge; bars: ")
    asked = asked_ranges(replays[0])
    assert sorted(ticker for ticker, _ in asked) == ["I:SPX", "X:BTCUSD"]
    for ticker, part in asked:
        assert began <= part.end <= utc_now()
        stored = value(
            url,
            "SELECT count(*) FROM market_data.candles_1m JOIN market_data.instruments USING (symbol) WHERE ticker = %s",
            ticker,
        )
        assert stored == len(replays[0].bars(ticker, *part)) > 0
    hourly = value(url, "SELECT count(*) FROM market_data.candles_1h WHERE symbol = 'BTCUSD'")
    assert hourly in {28 * 24, 28 * 24 + 1}, "aggregates as well"
    everything = command("sync", env=envs[0])
    assert everything.returncode == 0
    assert {ticker for ticker, _ in asked_ranges(replays[0])[2:]} >= {"C:EURUSD", "I:DAX"}


@on_one_engine
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a worker"])
def test_a_sync_that_fails_says_why(url: str, engine: str, envs: list[dict[str, str]], *, beside: bool) -> None:
    """Exit code 1 and the provider's words for each symbol that failed; the others are done."""
    del engine
    with running(ReplayConfig(denied=("I:",))) as replay, ExitStack() as stack:
        env = envs[0] | {"POLYGON_BASE_URL": replay.url}
        if beside:
            stack.enter_context(working(env, url))
        done = command("sync", "SPX500", "BTCUSD", env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (failed,) = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failed.startswith("FAILED SPX500: You are not entitled to this data.")
    assert value(url, "SELECT count(*) > 0 FROM market_data.candles_1m WHERE symbol = 'BTCUSD'") is True


@on_one_engine
@pytest.mark.parametrize("words", [("sync",), ("backfill", "EURUSD", "--days", "3")], ids=["sync", "backfill"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a worker"])
def test_a_refused_key_ends_it(
    url: str, engine: str, envs: list[dict[str, str]], words: tuple[str, ...], *, beside: bool
) -> None:
    """Exit code 1, and the variable's name; it does not wait until somebody corrects it."""
    del engine
    with running(ReplayConfig(api_key="another")) as replay, ExitStack() as stack:
        env = envs[0] | {"POLYGON_BASE_URL": replay.url}
        if beside:
            stack.enter_context(working(env, url))
            wait_until(lambda: value(url, "SELECT provider FROM market_data.worker") == "unauthorized", "it is told")
        done = command(*words, env=env)
        assert len(replay.requests) == 1
    assert done.returncode == 1, done.stdout + done.stderr
    assert "set POLYGON_API_KEY to a valid one" in done.stdout + done.stderr


def _looked_at(url: str, symbol: str) -> datetime:
    found = value(url, "SELECT asked_to FROM market_data.sync_state WHERE symbol = %s", symbol)
    assert isinstance(found, datetime)
    return found


TICKERS = dict(zip(SYMBOLS, ("X:BTCUSD", "I:DAX", "C:EURUSD", "I:SPX"), strict=True))
_STANDING_BY: LiteralString = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'SELECT pg_try_advisory_lock%%'
"""
