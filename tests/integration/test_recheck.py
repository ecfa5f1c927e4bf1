"""The daily second look at settled bars: what was corrected, what is gone, and what must not be mistaken for either."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest

from service.bars import from_ms
from service.coverage import MINUTE, minute_floor
from service.provider_calls.refusals import Answer
from service.provider_calls.request import Request
from service.ranges import Range, Ranges
from service.settings import Settings
from service.sync import Sync
from tests.integration import backfilling
from tests.integration.marketdata import SETTLE, at
from tests.integration.simulation import Simulation, simulated

BEGIN = at("2024-06-12 14:30:02")
SINCE = at("2024-06-10 00:00")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MakeSettings = Callable[..., Settings]


def checked_daily(settings: MakeSettings, *symbols: str) -> AbstractAsyncContextManager[Simulation]:
    return simulated(settings, BEGIN, *symbols, BACKFILL_DAYS="2", RECHECK_DAYS="30")


def rows(life: Simulation, query: LiteralString) -> list[tuple[Any, ...]]:
    assert life.settings.database_url is not None
    with psycopg.connect(life.settings.database_url) as conn:
        return conn.execute(query).fetchall()


def revisions(life: Simulation) -> list[tuple[Any, ...]]:
    """What was replaced or removed, in order."""
    return rows(life, "SELECT symbol, ts, close FROM market_data.bar_revisions ORDER BY id")


def covered(life: Simulation, symbol: str = "BTCUSD") -> Ranges:
    assert life.settings.database_url is not None
    return backfilling.ledger(life.settings.database_url, symbol)["covered"]


async def to_day(life: Simulation, sync: Sync, day: int) -> Sequence[tuple[str, Range]]:
    """Two passes, so many days after the begin; what they asked for of the past."""
    life.clock.now = BEGIN + day * (DAY + 2 * MINUTE)
    seen = len(life.asked())
    await life.minutes(sync, 2)
    return [(ticker, span) for ticker, span in life.asked(seen) if span.start <= BEGIN - DAY]


def some_minute(life: Simulation, symbol: str = "BTCUSD", place: int = 100) -> datetime:
    """A settled minute with a bar."""
    return from_ms(int(life.replay.bars(symbol, SINCE, BEGIN - HOUR).ts[place]))


async def test_what_is_settled_is_fetched_anew_once_a_day_with_one_call_a_symbol(settings: MakeSettings) -> None:
    """However often a look at it is taken."""
    async with checked_daily(settings, "BTCUSD", "EURUSD") as life, life.worker() as sync:
        await life.minutes(sync, 3)
        assert life.calls["recheck"] == 0
        life.clock.now = BEGIN + DAY
        await life.minutes(sync, 3)
        end = minute_floor(BEGIN + DAY)
        seen = [span for _, span in life.asked() if span.start == SINCE][2:]
        assert len(seen) == 2
        assert all(span.end <= end for span in seen)
        assert sync.calls["recheck"] == 2
        await life.live(sync, BEGIN + 2 * DAY - MINUTE, 8 * HOUR)
        assert sync.calls["recheck"] == 2
        assert rows(life, "SELECT count(*) FROM market_data.sync_state WHERE NOT isempty(recheck)") == [(0,)]
        assert revisions(life) == []
        life.clock.now = BEGIN + 2 * DAY + 2 * MINUTE
        await life.minutes(sync, 2)
        assert sync.calls["recheck"] == 4
        await life.assert_equal(SINCE, "BTCUSD", "EURUSD", until=life.clock() - MINUTE)


async def test_a_corrected_bar_is_stored_counted_kept_and_shown_by_every_timeframe(settings: MakeSettings) -> None:
    async with checked_daily(settings, "BTCUSD", "SPX500") as life, life.worker() as sync:
        await life.minutes(sync)
        wrong = {symbol: some_minute(life, symbol) for symbol in ("BTCUSD", "SPX500")}
        old = {symbol: life.replay.bars(symbol, ts, ts + MINUTE).close[0] for symbol, ts in wrong.items()}
        for symbol, ts in wrong.items():
            bar = life.replay.bars(symbol, ts, ts + MINUTE)
            life.replay.amend(symbol, ts, close=float(bar.high[0]) * 1.5, high=float(bar.high[0]) * 1.5)
        life.clock.now = BEGIN + DAY
        await life.minutes(sync)
        assert life.said[-1].startswith("calls: 2 edge, 2 recheck;")
        assert life.said[-1].endswith(" 2 changed")
        counts = rows(
            life, "SELECT last_sync_rows, last_sync_changed FROM market_data.sync_state WHERE covered <> '{}'"
        )
        assert counts == [(1, 1), (1, 1)]
        assert sorted(revisions(life)) == [(symbol, ts, old[symbol]) for symbol, ts in sorted(wrong.items())]
        assert rows(life, "SELECT count(*) FROM market_data.pending_refreshes") == [(0,)]
        await life.assert_equal(SINCE, "BTCUSD", "SPX500", until=life.clock() - MINUTE)


async def test_a_bar_that_comes_late_is_stored(settings: MakeSettings) -> None:
    """One that was not there when its minute settled."""
    async with checked_daily(settings, "BTCUSD") as life, life.worker() as sync:
        late = some_minute(life)
        bar = life.replay.bars("BTCUSD", late, late + MINUTE)
        values = {name: float(getattr(bar, name)[0]) for name in ("open", "high", "low", "close", "volume", "vwap")}
        life.replay.remove("BTCUSD", late)
        await life.minutes(sync)
        life.replay.amend("BTCUSD", late, **values)
        await to_day(life, sync, 1)
        assert revisions(life) == []
        await life.assert_equal(SINCE, "BTCUSD", until=life.clock() - MINUTE)


async def test_a_bar_that_is_gone_goes_when_two_rechecks_a_day_apart_agree(settings: MakeSettings) -> None:
    """Its minute stays covered, and what it was is kept."""
    async with checked_daily(settings, "BTCUSD") as life, life.worker() as sync:
        await life.minutes(sync)
        gone = some_minute(life)
        was = life.replay.bars("BTCUSD", gone, gone + MINUTE).close[0]
        life.replay.remove("BTCUSD", gone)
        assert len(await to_day(life, sync, 1)) == 1
        assert revisions(life) == []
        assert rows(life, "SELECT symbol, ts FROM market_data.missed_bars") == [("BTCUSD", gone)]
        assert len(await to_day(life, sync, 2)) == 1
        assert revisions(life) == [("BTCUSD", gone, was)]
        assert rows(life, "SELECT count(*) FROM market_data.missed_bars") == [(0,)]
        assert covered(life) == Ranges.of(SINCE, minute_floor(life.clock()) - MINUTE - SETTLE)
        await life.assert_equal(SINCE, "BTCUSD", until=life.clock() - MINUTE)


async def test_a_bar_that_comes_back_between_two_rechecks_stays(settings: MakeSettings) -> None:
    """Missed on the first and on the third day, it is missed for the first time on the third."""
    async with checked_daily(settings, "BTCUSD") as life, life.worker() as sync:
        await life.minutes(sync)
        gone = some_minute(life)
        bar = life.replay.bars("BTCUSD", gone, gone + MINUTE)
        values = {name: float(getattr(bar, name)[0]) for name in ("open", "high", "low", "close", "volume", "vwap")}
        for day, there in enumerate((False, True, False), 1):
            if there:
                life.replay.amend("BTCUSD", gone, **values)
            else:
                life.replay.remove("BTCUSD", gone)
            await to_day(life, sync, day)
            assert rows(life, "SELECT count(*) FROM market_data.missed_bars") == [(0 if there else 1,)]
            assert revisions(life) == []
        await to_day(life, sync, 4)
        assert [ts for _, ts, _ in revisions(life)] == [gone]


async def test_neither_an_empty_nor_a_cut_answer_removes_a_bar(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it comes: it shows nothing but itself. Nor does it take coverage away."""
    async with checked_daily(settings, "BTCUSD", "ETHUSD") as life, life.worker() as sync:
        await life.minutes(sync)
        stored: LiteralString = "SELECT count(*) FROM market_data.candles_1m"
        before = rows(life, stored)
        answer = life.replay.app.answer

        def emptied(request: Request, fault: str | None = None) -> Answer:
            """BTCUSD has no bar any more, ETHUSD none of the first two days."""
            *_, ticker, _range, _one, _minute, start, end = request.path.split("/")
            since = 9e14 if ticker == "X:BTCUSD" else BEGIN.timestamp() * 1000
            path = request.path.replace(start, f"{max(int(start), int(min(since, float(end)))):d}")
            return answer(_at(request, path), fault)

        monkeypatch.setattr(life.replay.app, "answer", emptied)
        for day in (1, 2, 3):
            asked = await to_day(life, sync, day)
            assert len(asked) >= 1
        assert revisions(life) == []
        assert rows(life, "SELECT count(*) FROM market_data.missed_bars") == [(0,)]
        assert rows(life, stored) >= before
        for symbol in ("BTCUSD", "ETHUSD"):
            assert not Ranges.of(SINCE, BEGIN - HOUR) - covered(life, symbol)


def _at(request: Request, path: str) -> Request:
    return Request(method=request.method, path=path, query=request.query, base=request.base, bearer=request.bearer)


async def test_a_bar_that_became_impossible_is_neither_taken_nor_lost(settings: MakeSettings) -> None:
    """The good one from before stays, covered, however many re-checks find the bad one; that is kept aside."""
    async with checked_daily(settings, "BTCUSD") as life, life.worker() as sync:
        await life.minutes(sync)
        bad = some_minute(life)
        bar = life.replay.bars("BTCUSD", bad, bad + MINUTE)
        life.replay.amend("BTCUSD", bad, high=float(bar.low[0]) / 2)
        for day in (1, 2, 3):
            await to_day(life, sync, day)
        assert revisions(life) == []
        assert [ts for (ts,) in rows(life, "SELECT ts FROM market_data.rejected_bars")] == [bad]
        assert covered(life) == Ranges.of(SINCE, minute_floor(life.clock()) - MINUTE - SETTLE)
        assert rows(life, "SELECT count(*) FROM market_data.sync_state WHERE NOT isempty(unavailable)") == [(0,)]
        life.replay.amend("BTCUSD", bad, high=float(bar.high[0]))
        await life.assert_equal(SINCE, "BTCUSD", until=life.clock() - MINUTE)


async def test_a_recheck_that_fails_is_made_later_and_keeps_nothing_else_waiting(settings: MakeSettings) -> None:
    async with checked_daily(settings, "BTCUSD", "EURUSD") as life:
        async with life.worker() as sync:
            await life.minutes(sync)
            gone = some_minute(life)
            life.replay.amend("BTCUSD", gone, close=float(life.replay.bars("BTCUSD", gone, gone + MINUTE).low[0]))
            life.clock.now = BEGIN + DAY
            life.replay.faults[:] = [None, None, *["server_error:503"] * 4]
            await life.minutes(sync, 12)
        assert len(life.replay.faults) == 0
        assert life.calls["recheck"] == 2
        assert len(revisions(life)) == 1
        await life.assert_equal(SINCE, "BTCUSD", "EURUSD", until=life.clock() - MINUTE)
