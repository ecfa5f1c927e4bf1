import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, LiteralString

import msgspec
import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from service.db.connect import FETCHER_LOCK
from service.errors import DatabaseError, SettingsError, SourceMismatch, UsageError
from service.instruments import SEED
from service.plan import Summary
from service.provider.client import open_client
from service.provider.transport import Retry
from service.ranges import Range, Ranges
from service.replay import ReplayConfig, ReplayServer, running
from service.setting_values import Secret
from service.settings import Settings
from service.timeframes import Timeframe
from tests.integration.backfilling import (
    KEY,
    NOW,
    Recorder,
    asked_ranges,
    assert_same,
    at,
    expected,
    ledger,
    picture,
    run,
    span,
    value,
)

DAY = span("2024-06-11", "2024-06-12")


@pytest.fixture
def replay() -> Iterator[ReplayServer]:
    """A provider at its best."""
    with running(ReplayConfig(now=NOW, api_key=KEY)) as server:
        yield server


@pytest.fixture
def chosen(settings: Callable[..., Settings], replay: ReplayServer) -> Settings:
    """Settings for the test's database and the replay."""
    return settings(
        POLYGON_API_KEY=KEY, POLYGON_BASE_URL=replay.url, POLYGON_RATE_LIMIT="unlimited", RETENTION_1M="off"
    )


@pytest.fixture
def url(database: str) -> str:
    """The test's database."""
    return database


def _elsewhere(chosen: Settings, replay: ReplayServer, *, key: str = KEY, rate: int | None = None) -> Settings:
    return msgspec.structs.replace(
        chosen, polygon_base_url=replay.url, polygon_api_key=Secret(key), polygon_rate_limit=rate
    )


def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    retry = Retry(base=0.01, longest=0.05, longest_asked=0.05, window=0.05)
    monkeypatch.setattr("service.backfill.open_client", partial(open_client, retry=retry, connect_timeout=1.0))


def _days(first: int, last: int) -> Range:
    """Days of May 2024, the last one excluded."""
    return Range(at(f"2024-05-{first:02}"), at(f"2024-05-{last:02}"))


async def test_a_second_run_asks_for_nothing_and_changes_nothing(
    chosen: Settings, replay: ReplayServer, url: str
) -> None:
    """What is covered, nights and weekends without a bar included, is never asked for again."""
    symbols, fortnight = ["EURUSD", "SPX500", "BTCUSD"], span("2024-05-27", "2024-06-11")
    first = await run(chosen, symbols, fortnight)
    before, calls = picture(url), len(replay.requests)
    changes = value(url, "SELECT count(*) FROM market_data.changes")
    assert_same(before, expected(replay, symbols, fortnight))
    assert first.stored.new == sum(len(bars) for key, bars in before.items() if key[1] == "1m")
    watcher = Recorder()
    again = await run(chosen, symbols, fortnight, watcher=watcher)
    assert (again.requests, again.stored.new, again.failures) == (0, 0, {})
    assert len(replay.requests) == calls
    assert [(plan.requests, plan.bars, plan.minutes) for plan in watcher.plans] == [(0, 0, 0)]
    assert value(url, "SELECT count(*) FROM market_data.changes") == changes
    assert_same(picture(url), before)


async def test_only_the_holes_are_asked_for(chosen: Settings, replay: ReplayServer, url: str) -> None:
    """A range around what is there is filled where it is missing: before it, in between, and after it."""
    await run(chosen, ["BTCUSD"], _days(11, 13))
    await run(chosen, ["BTCUSD"], _days(15, 17))
    replay.requests.clear()
    await run(chosen, ["BTCUSD"], _days(10, 19))
    holes = [_days(10, 11), _days(13, 15), _days(17, 19)]
    assert sorted(asked_ranges(replay)) == [("X:BTCUSD", hole) for hole in holes]
    assert ledger(url, "BTCUSD")["covered"] == Ranges([_days(10, 19)])
    assert_same(picture(url), expected(replay, ["BTCUSD"], _days(10, 19)))


async def test_the_rolling_edge_is_asked_for_again_until_it_settles(
    chosen: Settings, replay: ReplayServer, url: str
) -> None:
    """The last fifteen minutes are stored but not covered; later they are asked for once more: the last word counts."""
    today = Range(at("2024-06-13"), NOW)
    await run(chosen, ["BTCUSD"], today)
    edge = NOW - timedelta(minutes=15)
    assert ledger(url, "BTCUSD")["covered"] == Ranges.of(today.start, edge)
    replay.amend("BTCUSD", edge, close=1.0, low=1.0)
    replay.remove("BTCUSD", edge + timedelta(minutes=1))
    replay.requests.clear()
    replay.now = NOW + timedelta(minutes=20)
    later = await run(chosen, ["BTCUSD"], today, clock=lambda: NOW + timedelta(minutes=20))
    assert asked_ranges(replay) == [("X:BTCUSD", Range(edge, NOW))]
    assert (later.stored.new, later.stored.changed) == (0, 1)
    assert ledger(url, "BTCUSD")["covered"] == Ranges([today])
    assert_same(picture(url), expected(replay, ["BTCUSD"], today))
    revised = value(url, "SELECT array_agg(ts) FROM market_data.bar_revisions")
    assert revised == [edge + timedelta(minutes=1)], "the withdrawn bar; the other was not settled"


async def test_the_newest_slice_comes_first_for_all_symbols(
    chosen: Settings, replay: ReplayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices lie on one grid of 28 days; an older one begins when every symbol has the newer one."""
    monkeypatch.setattr("service.backfill.FETCHERS", 1)
    symbols = ["SPX500", "NAS100", "DJI30"]
    await run(chosen, symbols, span("2024-04-01", "2024-06-10"))
    tickers = ["I:SPX", "I:NDX", "I:DJI"]
    slices = [
        span("2024-06-06", "2024-06-10"),
        span("2024-05-09", "2024-06-06"),
        span("2024-04-11", "2024-05-09"),
        span("2024-04-01", "2024-04-11"),
    ]
    assert asked_ranges(replay) == [(ticker, part) for part in slices for ticker in tickers]


async def test_no_symbols_means_all_that_are_active(chosen: Settings, replay: ReplayServer, url: str) -> None:
    """All 45 of the start, but for one that was switched off."""
    with psycopg.connect(url) as conn:
        conn.execute("UPDATE market_data.instruments SET active = false WHERE symbol = 'DAX40'")
    done = await run(chosen, None, Range(NOW - timedelta(days=2), NOW - timedelta(days=1)))
    assert (done.failures, done.requests) == ({}, 44)
    wanted = {instrument.ticker for instrument in SEED if instrument.symbol != "DAX40"}
    assert {ticker for ticker, _ in asked_ranges(replay)} == wanted
    assert ledger(url, "DAX40")["wanted"] == Ranges()


async def test_a_key_that_is_refused_costs_one_call(chosen: Settings, replay: ReplayServer, url: str) -> None:
    """Every symbol fails with what to do about it; what was asked for stays wanted, for the next run."""
    symbols = ["BTCUSD", "EURUSD", "SPX500"]
    done = await run(_elsewhere(chosen, replay, key="wr0ng-key"), symbols, DAY)
    assert (done.requests, len(replay.requests)) == (1, 1)
    assert sorted(done.failures) == sorted(symbols)
    for reason in done.failures.values():
        assert "POLYGON_API_KEY" in reason
        assert "Unknown API Key" in reason
        assert "wr0ng-key" not in reason
    assert ledger(url, "EURUSD") == {"wanted": Ranges([DAY]), "covered": Ranges(), "unavailable": Ranges()}
    assert picture(url) == {}


async def test_without_a_key_no_call_is_made(chosen: Settings, replay: ReplayServer, url: str) -> None:
    """The error names the variable."""
    with pytest.raises(SettingsError, match="POLYGON_API_KEY: is not set"):
        await run(msgspec.structs.replace(chosen, polygon_api_key=None), ["BTCUSD"], DAY)
    assert replay.requests == []
    assert ledger(url, "BTCUSD")["wanted"] == Ranges()


async def test_what_the_plan_does_not_cover_fails_alone(
    chosen: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Indices refused with 403 fail with the provider's words after one call each; all others are stored."""
    monkeypatch.setattr("service.backfill.FETCHERS", 1)
    symbols, month = ["SPX500", "EURUSD", "NAS100", "BTCUSD"], span("2024-05-20", "2024-06-11")
    with running(ReplayConfig(now=NOW, denied=("I:",))) as replay:
        done = await run(_elsewhere(chosen, replay), symbols, month)
        tickers = [ticker for ticker, _ in asked_ranges(replay)]
        assert sorted(tickers) == ["C:EURUSD"] * 2 + ["I:NDX", "I:SPX"] + ["X:BTCUSD"] * 2
        assert sorted(done.failures) == ["NAS100", "SPX500"]
        assert "You are not entitled to this data" in done.failures["SPX500"]
        assert_same(picture(url), expected(replay, ["EURUSD", "BTCUSD"], month))
    assert ledger(url, "SPX500") == {"wanted": Ranges([month]), "covered": Ranges(), "unavailable": Ranges()}
    query = "SELECT status, error_message, next_attempt_at FROM market_data.sync_state WHERE symbol = 'SPX500'"
    with psycopg.connect(url) as conn:
        assert conn.execute(query.encode()).fetchone() == (
            "failed",
            done.failures["SPX500"],
            NOW + timedelta(minutes=5),
        )


async def test_history_beyond_the_plan_is_told_in_the_providers_words(chosen: Settings, url: str) -> None:
    """A provider that refuses what lies before its history fails that symbol; what is newer is stored first."""
    config = ReplayConfig(now=NOW, history_start=at("2024-05-09"), history_refused=True)
    with running(config) as replay:
        done = await run(_elsewhere(chosen, replay), ["BTCUSD"], span("2024-05-01", "2024-06-11"))
    assert "Your plan doesn't include this data timeframe" in done.failures["BTCUSD"]
    assert ledger(url, "BTCUSD")["covered"] == Ranges([span("2024-05-09", "2024-06-11")])


async def test_a_provider_that_is_down_ends_the_run(
    chosen: Settings, replay: ReplayServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every piece waits out its attempts: after a few the run ends, each symbol with the reason."""
    _impatient(monkeypatch)
    replay.faults[:] = ["server_error:503"] * 1000
    symbols = [instrument.symbol for instrument in SEED]
    done = await run(chosen, symbols, span("2024-01-01", "2024-06-11"))
    assert sorted(done.failures) == sorted(symbols)
    assert "HTTP 503: Service Unavailable; try again later" in done.failures["BTCUSD"]
    assert done.requests <= 5 * 7
    with running(ReplayConfig(now=NOW)) as gone:
        pass
    began = time.monotonic()
    done = await run(_elsewhere(chosen, gone), symbols, DAY)
    assert time.monotonic() - began < 10
    assert "ConnectError" in done.failures["BTCUSD"]
    assert ledger(url, "BTCUSD")["covered"] == Ranges()


async def test_two_runs_at_once_share_the_work(chosen: Settings, url: str) -> None:
    """The second waits, then asks only for what the first did not: no call twice, no error."""
    config, symbols = ReplayConfig(now=NOW, latency=50), ["BTCUSD", "EURUSD", "SPX500"]
    both, wider = span("2024-05-20", "2024-06-11"), span("2024-05-20", "2024-06-12")
    with running(config) as replay:
        first, second = Recorder(), Recorder()
        slow = _elsewhere(chosen, replay)
        done = await asyncio.gather(
            run(slow, symbols, both, watcher=first), run(slow, [*symbols, "DAX40"], wider, watcher=second)
        )
        assert [one.failures for one in done] == [{}, {}]
        assert sorted([first.waited, second.waited]) == [False, True]
        asked = asked_ranges(replay)
        assert len(asked) == len(set(asked)) == sum(one.requests for one in done)
        minutes = {ticker: Ranges() for ticker, _ in asked}
        for ticker, part in asked:
            assert not len(minutes[ticker] & Ranges([part])), "nothing is fetched twice"
            minutes[ticker] |= Ranges([part])
        assert set(minutes.values()) == {Ranges([wider])}
        assert_same(picture(url), expected(replay, [*symbols, "DAX40"], wider))


async def test_it_waits_while_another_process_calls_the_provider(
    chosen: Settings, replay: ReplayServer, url: str
) -> None:
    """Whoever holds the lock calls alone, a process of another kind too; what is asked for is noted meanwhile."""
    watcher = Recorder()
    with psycopg.connect(url, autocommit=True) as worker:
        worker.execute("SELECT pg_advisory_lock(%s)", [FETCHER_LOCK])
        waiting = asyncio.create_task(run(chosen, ["BTCUSD"], DAY, watcher=watcher))
        await asyncio.sleep(1.0)
        assert watcher.waited
        assert len(watcher.plans) == 1
        assert replay.requests == []
        assert ledger(url, "BTCUSD")["wanted"] == Ranges([DAY])
    done = await waiting
    assert (done.requests, done.followed) == (1, False)


async def test_a_run_that_lost_its_right_to_call_ends(
    chosen: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the connection the lock is gone, and another process may be calling: the run does not go on beside it."""
    monkeypatch.setattr("service.lock.CHECK_SECONDS", 0.1)
    with running(ReplayConfig(now=NOW, latency=300)) as replay:
        work = run(_elsewhere(chosen, replay), ["BTCUSD", "EURUSD"], span("2023-06-01", "2024-06-11"))
        task = asyncio.create_task(work)
        await asyncio.sleep(0.6)
        with psycopg.connect(url) as conn:
            assert conn.execute(_BREAK_LOCK, [FETCHER_LOCK]).fetchall() == [(True,)]
        with pytest.raises(DatabaseError, match="right to call the provider was lost: run the same command again"):
            await asyncio.wait_for(task, 5)


async def test_what_sinks_below_the_floor_meanwhile_is_left_out(
    chosen: Settings, engine: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run over midnights the floor rises: on TimescaleDB nothing below it is asked for, and the run still ends."""
    monkeypatch.setattr("service.backfill.FETCHERS", 1)
    short = msgspec.structs.replace(chosen, retention={**chosen.retention, Timeframe.M1: timedelta(days=30)})
    asked, jump = span("2024-05-15", "2024-06-11"), timedelta(days=7)
    with running(ReplayConfig(now=NOW + jump)) as replay:
        elsewhere = _elsewhere(short, replay)
        done = await run(elsewhere, ["BTCUSD"], asked, clock=lambda: NOW + jump if replay.requests else NOW)
        assert (done.failures, done.requests) == ({}, 2)
        low = asked.start + jump if engine == "timescaledb" else asked.start
        grid = at("2024-06-06")
        assert asked_ranges(replay) == [("X:BTCUSD", Range(grid, asked.end)), ("X:BTCUSD", Range(low, grid))]
        assert ledger(url, "BTCUSD")["covered"] == Ranges.of(low, asked.end)


async def test_a_failure_stays_noted_when_another_piece_works(
    chosen: Settings, replay: ReplayServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A symbol is in order when all of it is: what an older slice brings does not hide the newer one's failure."""
    monkeypatch.setattr("service.backfill.FETCHERS", 1)
    replay.faults[:] = ["broken_json"] * 3
    done = await run(chosen, ["BTCUSD"], span("2024-05-20", "2024-06-11"))
    assert "not JSON" in done.failures["BTCUSD"]
    assert ledger(url, "BTCUSD")["covered"] == Ranges([span("2024-05-20", "2024-06-06")])
    query: LiteralString = "SELECT status || error_message FROM market_data.sync_state WHERE symbol = 'BTCUSD'"
    assert value(url, query) == f"failed{done.failures['BTCUSD']}"


async def test_the_calls_of_the_last_minute_count_after_a_restart(
    chosen: Settings, replay: ReplayServer, url: str
) -> None:
    """Five calls a minute are five in any sixty seconds, whichever process made them."""
    limited = _elsewhere(chosen, replay, rate=5)
    symbols = ["BTCUSD", "ETHUSD", "SOLUSD"]
    clock = partial(datetime.now, UTC)
    assert (await run(limited, symbols, DAY, clock=clock)).requests == 3
    with psycopg.connect(url) as conn:
        conn.execute("UPDATE market_data.provider_calls SET at = at - interval '58 seconds'")
    began = time.monotonic()
    watcher = Recorder()
    done = await run(limited, ["XRPUSD", "ADAUSD", "DOGEUSD"], DAY, watcher=watcher, clock=clock)
    assert (done.requests, done.failures) == (3, {})
    assert time.monotonic() - began > 1.0
    assert [(plan.rate_limit, plan.minutes) for plan in watcher.plans] == [(5, 0)]
    with psycopg.connect(url) as conn:
        calls = [row[0] for row in conn.execute("SELECT at FROM market_data.provider_calls ORDER BY at").fetchall()]
    assert len(calls) == 6
    assert all(late - early >= timedelta(seconds=60) for early, late in zip(calls, calls[5:], strict=False))


async def test_bars_of_two_sources_never_meet(chosen: Settings, replay: ReplayServer, url: str) -> None:
    """A database with one source's bars refuses another's, and stays as it is."""
    with psycopg.connect(url) as conn:
        conn.execute("UPDATE market_data.installation SET source = 'polygon'")
    with pytest.raises(SourceMismatch, match=r"'polygon'.*'replay:synthetic'.*never mixed"):
        await run(chosen, ["BTCUSD", "EURUSD"], DAY)
    assert picture(url) == {}
    assert ledger(url, "BTCUSD")["covered"] == Ranges()
    assert value(url, "SELECT source FROM market_data.installation") == "polygon"
    assert len(replay.requests) <= 2


async def test_what_lies_below_the_floor_is_refused(
    chosen: Settings, engine: str, replay: ReplayServer, url: str
) -> None:
    """TimescaleDB drops it anyway: the error names the setting. The plain engine keeps everything."""
    short = msgspec.structs.replace(chosen, retention={**chosen.retention, Timeframe.M1: timedelta(days=30)})
    month = span("2024-05-14", "2024-05-15")
    if engine == "plain":
        assert (await run(short, ["BTCUSD"], month)).failures == {}
        return
    with pytest.raises(UsageError, match=r"2024-05-14 00:00 lies below 2024-05-15.*RETENTION_1M"):
        await run(short, ["BTCUSD"], month)
    assert ledger(url, "BTCUSD")["wanted"] == Ranges()
    assert replay.requests == []
    assert (await run(short, ["BTCUSD"], span("2024-05-15", "2024-05-16"))).failures == {}
    assert_same(picture(url), expected(replay, ["BTCUSD"], span("2024-05-15", "2024-05-16")))


async def test_the_future_is_refused(chosen: Settings, replay: ReplayServer) -> None:
    """Before anything is asked for."""
    with pytest.raises(UsageError, match="lies in the future"):
        await run(chosen, ["BTCUSD"], Range(NOW + timedelta(hours=1), NOW + timedelta(hours=2)))
    assert replay.requests == []


async def test_a_run_that_is_cancelled_leaves_whole_pieces(chosen: Settings, url: str) -> None:
    """At whatever moment: what is covered is there, all of it, and the next run goes on from there."""
    symbols, month = ["BTCUSD", "EURUSD", "SPX500", "DAX40"], span("2024-05-01", "2024-06-11")
    with running(ReplayConfig(now=NOW, latency=150)) as replay:
        slow = _elsewhere(chosen, replay)
        for seconds in (0.05, 0.2, 0.4):
            await _cancelled_after(seconds, run(slow, symbols, month))
            for symbol in symbols:
                covered = ledger(url, symbol)["covered"]
                stored = value(url, "SELECT count(*) FROM market_data.candles_1m WHERE symbol = %s", symbol)
                assert stored == sum(len(replay.bars(symbol, *part)) for part in covered)
        assert (await run(slow, symbols, month)).failures == {}
        assert_same(picture(url), expected(replay, symbols, month))
    assert value(url, "SELECT count(*) FROM market_data.pending_refreshes") == 0


async def test_a_run_that_waits_can_be_cancelled(chosen: Settings, replay: ReplayServer, url: str) -> None:
    """Whether for the plan's minute, for a provider that is down, or for another process: it ends at once."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("INSERT INTO market_data.provider_calls (at) SELECT now() FROM generate_series(1, 5)")
        limited = run(_elsewhere(chosen, replay, rate=5), ["BTCUSD"], DAY, clock=partial(datetime.now, UTC))
        await _cancelled_after(0.5, limited)
        assert replay.requests == []
        replay.faults[:] = ["rate_limited:plain"] * 9
        await _cancelled_after(0.5, run(chosen, ["BTCUSD"], DAY))
        conn.execute("SELECT pg_advisory_lock(%s)", [FETCHER_LOCK])
        await _cancelled_after(0.5, run(chosen, ["BTCUSD"], DAY))


async def test_a_cancellation_is_never_lost(chosen: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11's `wait_for`, with which the pool waits, may forget one: the run ends all the same."""
    given = AsyncConnectionPool.getconn

    async def forgetful(self: AsyncConnectionPool[Any], timeout: float | None = None) -> Any:  # noqa: ANN401, ASYNC109
        conn = await given(self, timeout)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.1)
        return conn

    monkeypatch.setattr(AsyncConnectionPool, "getconn", forgetful)
    with running(ReplayConfig(now=NOW)) as replay:
        for seconds in (0.05, 0.4, 0.8):
            work = run(_elsewhere(chosen, replay), ["BTCUSD", "EURUSD", "SPX500"], span("2023-01-01", "2024-06-11"))
            await _cancelled_after(seconds, work)


async def _cancelled_after(seconds: float, work: Coroutine[Any, Any, Summary]) -> None:
    """Cancel it so late, and see it end soon."""
    task = asyncio.create_task(work)
    await asyncio.sleep(seconds)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()


_BREAK_LOCK = """
    SELECT pg_terminate_backend(pid) FROM pg_locks
    WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (classid::bigint << 32) + objid::bigint = %s
"""
