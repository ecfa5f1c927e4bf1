"""Aggregates: whatever was stored, in whatever order, every candle of every level is the one its bars make.

One checker is used throughout: `wrong_candles` recomputes all levels from the bars. What it leaves out is noted as
still to refresh, and readers are told so; on plain PostgreSQL that is nothing, ever.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, sql

from service import coverage, ledger, windows
from service.bars import Bars
from service.coverage import MINUTE
from service.db import timescaledb
from service.db.connect import Database
from service.db.preflight import checked
from service.ranges import Range, Ranges
from service.store import Answered, store
from service.timeframes import AGGREGATED, Timeframe
from tests.integration.marketdata import SETTLE, SOURCE, at, invent, minutes, only_active, put, wrong_candles

NOON = at("2024-03-05 12:00")
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SYMBOLS = ("EURUSD", "BTCUSD", "SPX500")


@pytest.fixture
async def db(database: str, engine: str) -> AsyncIterator[Database]:
    async with checked(database, engine) as opened:
        yield opened


@pytest.fixture
async def conn(db: Database) -> AsyncIterator[AsyncConnection[Any]]:
    """With EURUSD as the only active symbol: no other one holds the watermark back."""
    async with db.connection() as one:
        await only_active(one, "EURUSD")
        yield one


on_timescaledb = [pytest.mark.timescaledb, pytest.mark.parametrize("engine", ["timescaledb"], indirect=True)]


def only_timescaledb(test: Callable[..., object]) -> Callable[..., object]:
    """For what plain PostgreSQL does not have: a watermark, and candles that wait for a refresh."""
    for mark in on_timescaledb:
        test = mark(test)
    return test


async def noted(conn: AsyncConnection[Any]) -> int:
    row = await (await conn.execute("SELECT count(*) FROM market_data.pending_refreshes")).fetchone()
    return int(row[0]) if row else 0


async def candles(conn: AsyncConnection[Any], timeframe: Timeframe, symbol: str = "EURUSD") -> dict[datetime, Any]:
    query = sql.SQL("SELECT ts, open, high, low, close, volume, vwap, trades FROM {} WHERE symbol = %s ORDER BY ts")
    level = sql.Identifier("market_data", timeframe.table)
    return {row[0]: row[1:] for row in await (await conn.execute(query.format(level), (symbol,))).fetchall()}


# In which order bars come


@pytest.mark.parametrize("often", [True, False], ids=["a refresh after each slice", "one refresh at the end"])
async def test_history_stored_from_the_newest_slice_backwards_is_aggregated_whole(
    db: Database, conn: AsyncConnection[Any], *, often: bool
) -> None:
    """Each older slice lies below the watermark that the newer one has set, and before the first bar so far."""
    await only_active(conn, *SYMBOLS)
    now = NOON + 7 * MINUTE
    for back in range(4):
        end = coverage.minute_floor(now) - back * 10 * DAY
        for symbol in SYMBOLS:
            bars = invent(minutes(end - 3 * DAY, end, 7), volume=symbol != "SPX500")
            await put(conn, db.engine, symbol, end - 10 * DAY, end, now=now, bars=bars)
        if often:
            await db.engine.refresh(conn, {}, now)
            assert await wrong_candles(conn) == []
    await db.engine.refresh(conn, {}, now)
    assert await noted(conn) == 0
    assert await wrong_candles(conn) == []
    assert len(await candles(conn, Timeframe.D1)) == 16


async def test_a_symbol_that_comes_after_the_others_is_aggregated_whole(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """The watermark is not its own: the others have moved it."""
    await only_active(conn, *SYMBOLS)
    now = NOON
    for symbol in ("EURUSD", "BTCUSD"):
        await put(conn, db.engine, symbol, NOON - DAY, NOON, now=now)
    await db.engine.refresh(conn, {}, now)
    await put(conn, db.engine, "SPX500", NOON - 3 * DAY, NOON, now=now + HOUR)
    assert await wrong_candles(conn) == []
    await db.engine.refresh(conn, {}, now + HOUR)
    assert await noted(conn) == 0
    assert await wrong_candles(conn) == []


async def test_the_edge_is_right_at_every_minute(db: Database, conn: AsyncConnection[Any]) -> None:
    """Minute by minute over bucket ends of every level and midnight, with corrections of what was just stored."""
    start = at("2024-03-05 23:48")
    await put(conn, db.engine, "EURUSD", start - DAY, start, now=start)
    for minute in range(1, 31):
        now = start + minute * MINUTE
        bars = invent(minutes(start - 3 * MINUTE, now), minute % 3)
        await put(conn, db.engine, "EURUSD", start - 3 * MINUTE, now, now=now, bars=bars)
        if minute % 5 != 3:
            await db.engine.refresh(conn, {}, now)
            assert await noted(conn) == 0
        assert await wrong_candles(conn) == [], now


async def test_a_bar_stored_above_the_watermark_is_served_before_any_refresh(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """At 12:07 nothing that lies ahead is materialised: the next bars show at every level at once."""
    await only_active(conn, *SYMBOLS)
    now = NOON + 7 * MINUTE
    for symbol in SYMBOLS:
        await put(conn, db.engine, symbol, NOON - DAY, now, now=now)
    await db.engine.refresh(conn, {}, now)
    for later in range(1, 70, 9):
        await put(conn, db.engine, "EURUSD", now, now + later * MINUTE, now=now + later * MINUTE)
    await conn.execute("DELETE FROM market_data.pending_refreshes")
    assert await wrong_candles(conn) == []


async def test_what_a_symbol_behind_the_others_brings_is_served_before_any_refresh(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """Nothing is materialised beyond the edge of the slowest active symbol, as long as that is at most a day behind."""
    await only_active(conn, *SYMBOLS)
    now = NOON + 7 * MINUTE
    behind = now - 9 * HOUR
    await put(conn, db.engine, "BTCUSD", NOON - 2 * DAY, behind, now=now)
    for symbol in ("EURUSD", "SPX500"):
        await put(conn, db.engine, symbol, NOON - 2 * DAY, now, now=now)
    await db.engine.refresh(conn, {}, now)
    await put(conn, db.engine, "BTCUSD", behind, now, now=now)
    await conn.execute("DELETE FROM market_data.pending_refreshes")
    assert await wrong_candles(conn) == []


@only_timescaledb
async def test_a_symbol_more_than_a_day_behind_no_longer_holds_the_others_back(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """What it brings later is noted, and refreshed."""
    await only_active(conn, *SYMBOLS)
    now = NOON
    await put(conn, db.engine, "EURUSD", NOON - 5 * DAY, NOON, now=now)
    await put(conn, db.engine, "BTCUSD", NOON - 5 * DAY, NOON - 4 * DAY, now=now)
    await db.engine.refresh(conn, {}, now)
    assert await timescaledb._watermark(conn, Timeframe.H1) == NOON - DAY
    await put(conn, db.engine, "BTCUSD", NOON - 4 * DAY, NOON, now=now)
    assert await noted(conn) == 1
    await put(conn, db.engine, "SPX500", NOON - 5 * DAY, NOON, now=now)
    await db.engine.refresh(conn, {}, now)
    assert await wrong_candles(conn) == []
    assert await timescaledb._watermark(conn, Timeframe.H1) == NOON - HOUR


@only_timescaledb
async def test_the_watermark_never_covers_the_open_bucket(db: Database, conn: AsyncConnection[Any]) -> None:
    await only_active(conn, *SYMBOLS)
    now = NOON + 7 * MINUTE + timedelta(seconds=30)
    for symbol in SYMBOLS:
        await put(conn, db.engine, symbol, NOON - DAY, NOON + 7 * MINUTE, now=now)
    await db.engine.refresh(conn, {}, now)
    settled = coverage.minute_floor(now - SETTLE)
    for timeframe in AGGREGATED:
        assert await timescaledb._watermark(conn, timeframe) == timeframe.floor(settled)


# What comes late


@only_timescaledb
async def test_a_correction_is_noted_until_it_is_refreshed_and_then_right_at_every_level(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """Until then the old candle stands, and readers can know it."""
    await put(conn, db.engine, "EURUSD", NOON - 3 * DAY, NOON, now=NOON)
    await db.engine.refresh(conn, {}, NOON)
    hour = NOON - 2 * DAY
    before = (await candles(conn, Timeframe.H1))[hour]
    await put(
        conn, db.engine, "EURUSD", hour, hour + 3 * MINUTE, now=NOON, bars=invent(minutes(hour, hour + 3 * MINUTE), 9)
    )
    assert (await candles(conn, Timeframe.H1))[hour] == before
    assert await noted(conn) == 1
    assert await db.engine.refresh(conn, {}, NOON) == 1
    assert (await candles(conn, Timeframe.H1))[hour] != before
    assert await noted(conn) == 0
    assert await wrong_candles(conn) == []


@pytest.mark.parametrize("gap", [8 * DAY, 40 * DAY])
@pytest.mark.parametrize("last", [MINUTE, 3 * MINUTE])
async def test_a_correction_at_the_start_of_a_long_window_is_not_passed_over(
    db: Database, conn: AsyncConnection[Any], gap: timedelta, last: timedelta
) -> None:
    """Its bucket is the last of an invalidation and the first of a batch.

    The server's own batches leave that one out (timescaledb issue 10221).
    """
    start = at("2024-03-01 23:46")
    await put(conn, db.engine, "EURUSD", start, start + last, now=NOON)
    await db.engine.refresh(conn, {}, NOON)
    await put(conn, db.engine, "EURUSD", start, start + MINUTE, now=NOON, bars=invent([start], 5))
    later = NOON + gap
    await put(conn, db.engine, "EURUSD", later - HOUR, later, now=later)
    await db.engine.refresh(conn, {}, later)
    assert await noted(conn) == 0
    assert await wrong_candles(conn) == []


async def test_bars_between_two_far_windows_that_were_never_refreshed_stay_served(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """A window that moves the watermark starts at the old one: it jumps over nothing."""
    await put(conn, db.engine, "EURUSD", NOON - DAY, NOON, now=NOON)
    await db.engine.refresh(conn, {}, NOON)
    await put(conn, db.engine, "EURUSD", NOON, NOON + 20 * MINUTE, now=NOON + 20 * MINUTE)
    await db.engine.refresh(conn, {}, NOON + 20 * MINUTE)
    far = NOON + 60 * DAY
    await put(conn, db.engine, "EURUSD", far - HOUR, far, now=far)
    await db.engine.refresh(conn, {}, far)
    assert await noted(conn) == 0
    assert await wrong_candles(conn) == []


async def test_an_answer_without_bars_moves_nothing(db: Database, conn: AsyncConnection[Any]) -> None:
    """A weekend: the ledger grows, the aggregates do not, and Monday's bars are served."""
    await put(conn, db.engine, "EURUSD", NOON - DAY, NOON, now=NOON)
    await db.engine.refresh(conn, {}, NOON)
    monday = NOON + 3 * DAY
    await put(conn, db.engine, "EURUSD", NOON, monday, now=monday, bars=Bars.empty())
    assert await db.engine.refresh(conn, {}, monday) == 0
    await put(conn, db.engine, "EURUSD", monday, monday + HOUR, now=monday + HOUR)
    assert await wrong_candles(conn) == []
    await db.engine.refresh(conn, {}, monday + HOUR)
    assert await wrong_candles(conn) == []


async def test_a_refresh_with_nothing_noted_does_nothing(db: Database, conn: AsyncConnection[Any]) -> None:
    assert await db.engine.refresh(conn, {}, NOON) == 0


# Interruptions


class Interrupted(Exception):
    """Stands for a kill: what was committed stays, the rest never happens."""


@only_timescaledb
async def test_a_refresh_interrupted_anywhere_is_made_good_by_the_next_one(
    db: Database, conn: AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where bars were served from above the watermark, and so are noted no more.

    Parts go oldest first: the watermark passes nothing that is not refreshed.
    """
    real = timescaledb._refresh_part
    left = 0

    async def part(*args: Any) -> None:  # noqa: ANN401 - passed on as they are
        nonlocal left
        if not left:
            raise Interrupted
        left -= 1
        await real(*args)

    monkeypatch.setattr(timescaledb, "_refresh_part", part)
    now = NOON
    for parts in range(13):
        # Noted and not refreshed, as it lies above every end; then, far ahead, what moves the watermark over it.
        left = 99
        await put(conn, db.engine, "EURUSD", now, now + 50 * MINUTE, now=now + 50 * MINUTE)
        await db.engine.refresh(conn, {}, now + 50 * MINUTE)
        now += 17 * DAY
        await put(conn, db.engine, "EURUSD", now - HOUR, now, now=now)
        left = parts
        try:
            await db.engine.refresh(conn, {}, now)
        except Interrupted:
            assert await noted(conn) == 1
        assert await wrong_candles(conn) == [], parts
    left = 99
    await put(conn, db.engine, "EURUSD", now, now + MINUTE, now=now + DAY)
    await db.engine.refresh(conn, {}, now + DAY)
    assert await noted(conn) == 0
    assert await wrong_candles(conn) == []


@only_timescaledb
async def test_what_is_stored_while_a_refresh_runs_stays_noted(
    db: Database, conn: AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever levels have seen it already."""
    real = timescaledb._refresh_part
    moments = iter(range(99))

    async def part(*args: Any) -> None:  # noqa: ANN401 - passed on as they are
        await real(*args)
        minute = NOON - DAY + next(moments) * 7 * MINUTE
        async with db.connection() as other:
            await put(other, db.engine, "BTCUSD", minute, minute + MINUTE, now=NOON)

    await put(conn, db.engine, "EURUSD", NOON - 3 * DAY, NOON, now=NOON)
    monkeypatch.setattr(timescaledb, "_refresh_part", part)
    assert await db.engine.refresh(conn, {}, NOON) == 1
    monkeypatch.setattr(timescaledb, "_refresh_part", real)
    assert await noted(conn) == next(moments)
    assert await wrong_candles(conn) == []
    await db.engine.refresh(conn, {}, NOON)
    assert await noted(conn) == 0
    assert await wrong_candles(conn) == []


class Busy:
    """A connection on which a refresh fails so many times before it works."""

    def __init__(self, failures: int) -> None:
        self.calls = 0
        self._failures = failures

    async def execute(self, *_: object) -> None:
        self.calls += 1
        if self.calls <= self._failures:
            raise psycopg.errors.LockNotAvailable("another refresh of this aggregate is under way")


@only_timescaledb
async def test_what_is_refreshed_in_part_is_read_anew_too(db: Database, conn: AsyncConnection[Any]) -> None:
    """A change that begins below the floor stays noted, but above it the candles are others now."""
    await put(conn, db.engine, "EURUSD", NOON - 3 * DAY, NOON, now=NOON)
    before = await windows.version(conn, "EURUSD")
    assert await db.engine.refresh(conn, {Timeframe.M1: DAY}, NOON) == 0
    assert await noted(conn) == 1
    assert await windows.version(conn, "EURUSD") != before


@only_timescaledb
async def test_a_refresh_and_a_removal_do_not_wait_for_each_other(db: Database, conn: AsyncConnection[Any]) -> None:
    """A removal holds the symbol's ledger, and forgets at its end what is noted of it."""
    await put(conn, db.engine, "EURUSD", NOON - DAY, NOON, now=NOON)
    await db.engine.refresh(conn, {}, NOON)
    await put(conn, db.engine, "EURUSD", NOON - DAY, NOON, now=NOON, bars=invent(minutes(NOON - DAY, NOON), 5))
    assert await noted(conn) == 1
    async with db.connection() as other, db.connection() as watcher:
        async with other.transaction():
            await other.execute("SELECT FROM market_data.sync_state WHERE symbol = 'EURUSD' FOR UPDATE")
            refresh = asyncio.create_task(db.engine.refresh(conn, {}, NOON))
            waiting = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            while not (await watcher.execute(waiting, (conn.info.backend_pid,))).rowcount:
                assert not refresh.done()
                await asyncio.sleep(0.02)
            await other.execute("DELETE FROM market_data.pending_refreshes")
        assert await refresh == 1
    assert await noted(conn) == 0


async def test_a_refresh_that_meets_another_one_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a policy's own run; after eight tries it is an error."""
    monkeypatch.setattr(random, "uniform", lambda *_: 0.0)
    part = Range(NOON - DAY, NOON)
    conn: Any = Busy(7)
    await timescaledb._refresh_part(conn, Timeframe.H1, part)
    assert conn.calls == 8
    conn = Busy(8)
    with pytest.raises(psycopg.errors.LockNotAvailable):
        await timescaledb._refresh_part(conn, Timeframe.H1, part)
    assert conn.calls == 8


# The floor


@only_timescaledb
async def test_candles_outlive_the_bars_below_the_floor(db: Database, conn: AsyncConnection[Any]) -> None:
    """Bars are dropped by their age, and a refresh then leaves alone what was made of them: 1d goes on for ever."""
    retention = {Timeframe.M1: timedelta(days=30)}
    start = NOON - 60 * DAY
    for symbol in SYMBOLS:
        await put(conn, db.engine, symbol, start, NOON, now=NOON, bars=invent(minutes(start, NOON, 31)))
    await db.engine.refresh(conn, {}, NOON)
    before = {timeframe: await candles(conn, timeframe) for timeframe in AGGREGATED}
    floor = db.engine.floors(retention, NOON)[Timeframe.M1]
    assert floor == at("2024-02-05 00:00")
    await conn.execute("SELECT drop_chunks('market_data.candles_1m', %s)", (floor - 7 * DAY,))
    kept = await candles(conn, Timeframe.M1)
    assert start < min(kept) < floor

    # A correction at each end of what is left, and one that reaches from below the floor over it.
    for minute in (min(kept), floor - 2 * DAY, floor, NOON - DAY):
        await put(conn, db.engine, "EURUSD", minute, minute + MINUTE, now=NOON, bars=invent([minute], 9))
    straddling = minutes(floor - 31 * MINUTE, floor + 31 * MINUTE)
    await put(conn, db.engine, "EURUSD", straddling[0], straddling[-1] + MINUTE, now=NOON, bars=invent(straddling, 9))
    await db.engine.refresh(conn, retention, NOON)
    for timeframe in AGGREGATED:
        after = await candles(conn, timeframe)
        assert {ts: values for ts, values in after.items() if ts < floor} == {
            ts: values for ts, values in before[timeframe].items() if ts < floor
        }, timeframe
    wrong = await wrong_candles(conn)
    assert [row for row in wrong if row[2] >= floor] == []


# Anything at all


class World:
    """A market and its database, to which the dice do what can be done to it."""

    def __init__(self, db: Database, conn: AsyncConnection[Any], seed: int) -> None:
        self._db = db
        self._conn = conn
        self._dice = random.Random(seed)  # noqa: S311 - a simulation
        self.now = NOON + self._dice.randrange(3000) * MINUTE
        self.symbols = SYMBOLS[: self._dice.choice([1, 2, 3])]
        self._delay = {symbol: self._dice.choice([0, 0, 3, 20, 200, 2000]) * MINUTE for symbol in SYMBOLS}
        self._every = {symbol: self._dice.choice([1, 2, 7, 61]) for symbol in SYMBOLS}
        self.log: list[str] = []

    async def step(self) -> None:
        actions: list[Callable[[], Awaitable[None]]] = [
            *(self._pass, self._pass, self._jump),
            *(self._sync, self._sync, self._sync, self._history, self._nothing, self._correct),
            *(self._refresh, self._refresh),
        ]
        action = self._dice.choice(actions)
        self.log.append(f"{self.now:%m-%d %H:%M} {action.__name__}")
        await action()

    async def _pass(self) -> None:
        self.now += self._dice.choice([1, 3, 5, 17, 60, 240, 700]) * MINUTE

    async def _jump(self) -> None:
        self.now += self._dice.choice([1, 3, 10, 40]) * DAY

    async def _sync(self) -> None:
        """Ask for the last minutes, hours or days, and do all work that is open, or its newest slice."""
        who = self._dice.choice([self.symbols, [self._dice.choice(self.symbols)]])
        end = coverage.minute_floor(self.now)
        await ledger.want(self._conn, who, Range(end - self._dice.choice([30, 300, 2000]) * MINUTE, end))
        slices = coverage.plan(await ledger.ledgers(self._conn, who), Ranges.of(end - 400 * DAY, end))
        for piece in [piece for one in slices[: self._dice.choice([1, 9])] for piece in one.pieces]:
            there = [
                minute
                for minute in minutes(*piece.range)
                if minute < self.now - self._delay[piece.symbol]
                and minute.timestamp() // 60 % self._every[piece.symbol] == 0
            ]
            answer = Answered(
                piece=piece,
                bars=invent(there[:: len(there) // 3000 + 1], volume=piece.symbol != "SPX500"),
                rejected=[],
                source=SOURCE,
                asked_at=self.now,
            )
            await store(self._conn, self._db.engine, [answer], settle=SETTLE)

    async def _history(self) -> None:
        start = coverage.minute_floor(self.now) - self._dice.choice([1, 5, 30, 60]) * DAY
        end = start + self._dice.choice([1, 3, 100, 1500]) * MINUTE
        bars = invent(minutes(start, min(end, self.now), self._dice.choice([1, 13])))
        await put(self._conn, self._db.engine, self._dice.choice(self.symbols), start, end, now=self.now, bars=bars)

    async def _nothing(self) -> None:
        end = coverage.minute_floor(self.now)
        start = end - self._dice.choice([2, 9, 100]) * MINUTE
        symbol = self._dice.choice(self.symbols)
        await put(self._conn, self._db.engine, symbol, start, end, now=self.now, bars=Bars.empty())

    async def _correct(self) -> None:
        symbol = self._dice.choice(self.symbols)
        found = list(await candles(self._conn, Timeframe.M1, symbol))
        if found:
            minute = self._dice.choice(found)
            bars = invent([minute], self._dice.randrange(2, 99))
            await put(self._conn, self._db.engine, symbol, minute, minute + MINUTE, now=self.now, bars=bars)

    async def _refresh(self) -> None:
        """With a clock that may be behind that of the writers."""
        late = self._dice.choice([0, 0, 1, 7, 500]) * MINUTE
        await self._db.engine.refresh(self._conn, {}, self.now - late)


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_every_candle_is_the_one_its_bars_make(
    db: Database, conn: AsyncConnection[Any], seed: int
) -> None:
    """Symbols of different density and delay, history, gaps, corrections, jumps in time, refreshes now and then."""
    world = World(db, conn, seed)
    await only_active(conn, *world.symbols)
    for _ in range(20):
        await world.step()
        assert await wrong_candles(conn) == [], world.log
    await db.engine.refresh(conn, {}, world.now)
    assert await noted(conn) == 0
    assert await wrong_candles(conn) == [], world.log
