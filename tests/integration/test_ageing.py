"""Ageing: what is dropped, compressed and refreshed by the database itself, and what it must leave alone.

Every candle is held against the bars that were ever stored, computed here: what is dropped stays part of it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import product
from math import isclose
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from psycopg import AsyncConnection, sql

from service.bars import Bars, from_ms, to_ms
from service.coverage import MINUTE, Retention, minute_floor
from service.db import policies
from service.db.connect import Database, connect
from service.db.policies import APART, EVERY, FIRST_RUN, Policy, wanted
from service.db.preflight import checked
from service.errors import DatabaseError
from service.settings import Settings
from service.timeframes import AGGREGATED, Timeframe, utc_now
from tests.integration.marketdata import invent, minutes, only_active, put, wrong_candles

DAY = timedelta(days=1)
WEEK = timedelta(days=7)
SYMBOLS = ("EURUSD", "BTCUSD", "SPX500")
type_of_settings = Callable[..., Settings]
Candles = dict[tuple[Timeframe, str, datetime], tuple[Any, ...]]

only_timescaledb = pytest.mark.parametrize(
    "engine", [pytest.param("timescaledb", marks=pytest.mark.timescaledb)], indirect=True
)


@pytest.fixture
async def db(database: str, engine: str) -> AsyncIterator[Database]:
    async with checked(database, engine) as opened:
        yield opened


@pytest.fixture
async def conn(db: Database) -> AsyncIterator[AsyncConnection[Any]]:
    """With the three symbols active, and no other."""
    async with db.connection() as one:
        await only_active(one, *SYMBOLS)
        yield one


def age(db: Database, retention: Retention, recheck_days: int = 30) -> None:
    with connect(db.url) as conn:
        db.engine.age(conn, retention, recheck_days)


def keep(**kept: int) -> dict[Timeframe, timedelta | None]:
    """Retention in days of the timeframes named, the others for ever: `keep(M1=10)`."""
    return {
        timeframe: timedelta(days=kept[timeframe.name]) if timeframe.name in kept else None for timeframe in Timeframe
    }


async def job_ids(conn: AsyncConnection[Any]) -> dict[tuple[str, str], int]:
    """The ids of the policies by kind and relation."""
    rows = await conn.execute(
        "SELECT proc_name, hypertable_name, job_id FROM timescaledb_information.jobs"
        " WHERE hypertable_schema = 'market_data' ORDER BY array_position(%s, hypertable_name::text)",
        ([timeframe.table for timeframe in Timeframe],),
    )
    return {(policies._PROCEDURES[name], relation): number for name, relation, number in await rows.fetchall()}


async def run(conn: AsyncConnection[Any], *kinds: str) -> None:
    """Run all policies of these kinds, as the database's own scheduler does, finest timeframe first."""
    for (kind, _), number in (await job_ids(conn)).items():
        if kind in kinds:
            await conn.execute("CALL run_job(%s)", (number,))


async def drop_older(conn: AsyncConnection[Any], timeframe: Timeframe, than: datetime) -> None:
    """What a retention policy does, at a time of our own."""
    await conn.execute("SELECT drop_chunks(%s::regclass, older_than => %s)", (f"market_data.{timeframe.table}", than))


async def candles(conn: AsyncConnection[Any], *timeframes: Timeframe) -> Candles:
    found: Candles = {}
    for timeframe in timeframes:
        query = sql.SQL("SELECT symbol, ts, open, high, low, close, volume, vwap, trades FROM {}")
        rows = await conn.execute(query.format(sql.Identifier("market_data", timeframe.table)))
        found |= {(timeframe, symbol, ts): tuple(values) for symbol, ts, *values in await rows.fetchall()}
    return found


def computed(market: Mapping[str, Bars]) -> Candles:
    """The candles of every aggregate that these bars make."""
    return {
        (timeframe, symbol, from_ms(int(start))): _candle(bars.take(rows))
        for (symbol, bars), timeframe in product(market.items(), AGGREGATED)
        for start, rows in _buckets(bars.ts, round(timeframe.length.total_seconds() * 1000))
    }


def _buckets(ts: NDArray[np.int64], length: int) -> Iterable[tuple[np.int64, NDArray[np.int64]]]:
    starts, first = np.unique(ts // length * length, return_index=True)
    return zip(starts, np.split(np.arange(len(ts)), first[1:]), strict=True)


def _candle(bars: Bars) -> tuple[Any, ...]:
    prices = (float(bars.open[0]), float(bars.high.max()), float(bars.low.min()), float(bars.close[-1]))
    if np.isnan(bars.volume).all():
        return (*prices, None, None, None)
    total = float(bars.volume.sum())
    return (*prices, total, float((bars.vwap * bars.volume).sum()) / total if total else None, int(bars.trades.sum()))


def differences(served: Candles, expected: Candles) -> list[object]:
    """What is missing, too much or otherwise; sums of floats are compared to nine digits."""
    return [
        (*key, served.get(key), expected.get(key))
        for key in sorted(served.keys() | expected.keys(), key=lambda key: (key[2], key[1], key[0].value))
        if not _same(served.get(key, ()), expected.get(key, ()))
    ]


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(
        a == b or (a is not None and b is not None and isclose(a, b, rel_tol=1e-9))
        for a, b in zip(one, other, strict=True)
    )


def joined(*parts: Bars) -> Bars:
    """One symbol's bars in order of time; where a minute comes twice, the later part's."""
    ts = np.concatenate([part.ts for part in parts])
    last = {int(minute): place for place, minute in enumerate(ts)}
    whole = Bars(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in Bars.__struct_fields__})
    return whole.take(np.array([last[minute] for minute in sorted(last)], np.int64))


def bars_of(symbol: str, start: datetime, end: datetime, step: int = 1, seed: int = 0) -> Bars:
    return invent(minutes(start, end, step), SYMBOLS.index(symbol) + 10 * seed, volume=symbol != "SPX500")


# Which policies


def test_policies_follow_from_the_settings() -> None:
    """Of the usual ones: bars dropped after five years, compressed after thirty days, all aggregates refreshed."""
    asked = wanted(keep(M1=1825), 30)
    assert [(one.relation, str(one)) for one in asked] == [
        ("candles_1m", "compress after 30 days"),
        ("candles_1m", "drop after 1825 days"),
        ("candles_5m", "refresh from 30 days to 1 day ago"),
        ("candles_15m", "refresh from 30 days to 1 day ago"),
        ("candles_1h", "refresh from 30 days to 1 day ago"),
        ("candles_4h", "refresh from 30 days to 1 day ago"),
        ("candles_1d", "refresh from 30 days to 1 day ago"),
    ]


@pytest.mark.parametrize(("recheck_days", "after"), [(0, 30), (30, 30), (31, 31), (365, 365)])
def test_nothing_that_a_recheck_rewrites_is_compressed(recheck_days: int, after: int) -> None:
    assert Policy(what="columnstore", relation="candles_1m", since=timedelta(days=after)) in wanted({}, recheck_days)


@pytest.mark.parametrize(
    ("retention", "windows"),
    [
        (keep(M1=8), {"15m": 30, "1h": 30, "4h": 30, "1d": 30}),
        (keep(M1=9), {"15m": 30, "1h": 30, "4h": 30, "1d": 30}),
        (keep(M1=10, M5=20), {"5m": 2, "15m": 12, "1h": 30, "4h": 30, "1d": 30}),
        (keep(M1=1, M5=1, M15=1, H1=1, H4=1, D1=1), {}),
        (keep(M1=10, M5=10, M15=10, H1=10, H4=10), {"5m": 2, "15m": 2, "1h": 2, "4h": 2}),
        (keep(M1=11, M5=11, M15=11, H1=11, H4=11), {"5m": 3, "15m": 3, "1h": 3, "4h": 3, "1d": 3}),
        (keep(M1=37), {"5m": 29, "15m": 30, "1h": 30, "4h": 30, "1d": 30}),
    ],
)
def test_a_refresh_stays_inside_what_is_kept_of_the_level_it_reads(
    retention: Retention, windows: dict[str, int]
) -> None:
    """By more than a week; where no two buckets are left in it, there is none."""
    found = {one.relation: one for one in wanted(retention, 30) if one.what == "refresh"}
    assert {relation.removeprefix("candles_"): one.since for relation, one in found.items()} == {
        name: timedelta(days=days) for name, days in windows.items()
    }
    assert {(one.until, one.batch) for one in found.values()} <= {(DAY, 0)}


@only_timescaledb
async def test_policies_are_made_once(db: Database, conn: AsyncConnection[Any], settings: type_of_settings) -> None:
    """Whatever the settings and however often; also by two processes at once."""
    for changes in ({}, {"RETENTION_1M": "10 days", "RETENTION_5M": "20 days"}, {"RETENTION_1M": "off"}):
        retention = settings(**changes).retention
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda kept: age(db, kept), [retention, retention]))
        before = await job_ids(conn)
        age(db, retention)
        assert await job_ids(conn) == before
        with connect(db.url) as other:
            there = sorted(policies._there(other).values(), key=repr)
        assert there == sorted(wanted(retention, 30), key=repr)
        assert len(before) == len(there)


@only_timescaledb
@pytest.mark.parametrize(
    ("changes", "gone", "made"),
    [
        ({"RETENTION_1M": "6 years"}, ["retention candles_1m"], ["retention candles_1m"]),
        (
            {"RETENTION_1M": "20 days"},
            ["retention candles_1m", "refresh candles_5m"],
            ["retention candles_1m", "refresh candles_5m"],
        ),
        ({"RETENTION_1M": "8 days"}, ["retention candles_1m", "refresh candles_5m"], ["retention candles_1m"]),
        ({"RETENTION_1M": "off"}, ["retention candles_1m"], []),
        ({"RETENTION_5M": "6 years"}, [], ["retention candles_5m"]),
        ({"RECHECK_DAYS": "60"}, ["columnstore candles_1m"], ["columnstore candles_1m"]),
    ],
)
async def test_a_changed_setting_changes_its_own_policy(
    db: Database,
    conn: AsyncConnection[Any],
    settings: type_of_settings,
    *,
    changes: dict[str, str],
    gone: list[str],
    made: list[str],
) -> None:
    """And no other: `off` removes it, another length replaces it."""
    age(db, settings().retention)
    before = await job_ids(conn)
    age(db, settings(**changes).retention, settings(**changes).recheck_days)
    after = await job_ids(conn)
    assert {f"{what} {relation}" for (what, relation), _ in before.items() - after.items()} == set(gone)
    assert {f"{what} {relation}" for (what, relation), _ in after.items() - before.items()} == set(made)
    age(db, settings().retention)
    assert {(one.what, one.relation, one.setting) for one in await db.engine.jobs(conn)} == {
        (one.what, one.relation, str(one)) for one in wanted(settings().retention, 30)
    }


@only_timescaledb
async def test_a_policy_that_someone_else_made_gives_way_to_ours(db: Database, conn: AsyncConnection[Any]) -> None:
    """One that would drop too early, one by another clock, one in batches that skip buckets; a paused one stays."""
    await conn.execute("SELECT add_retention_policy('market_data.candles_1m', drop_after => INTERVAL '3 days')")
    await conn.execute(
        "SELECT add_retention_policy('market_data.candles_5m', drop_created_before => INTERVAL '3 days',"
        " initial_start => now() + INTERVAL '1 hour')"
    )
    await conn.execute(
        "SELECT add_continuous_aggregate_policy('market_data.candles_1h', NULL, INTERVAL '1 day', INTERVAL '1 hour',"
        " initial_start => now() + INTERVAL '1 hour')"
    )
    assert "refresh from any age to 1 day ago" in {one.setting for one in await db.engine.jobs(conn)}
    age(db, keep(M1=90))
    assert {(one.relation, one.setting) for one in await db.engine.jobs(conn)} == {
        (one.relation, str(one)) for one in wanted(keep(M1=90), 30)
    }
    for number in (await job_ids(conn)).values():
        await conn.execute("SELECT alter_job(%s, scheduled => false)", (number,))
    before = await job_ids(conn)
    age(db, keep(M1=90))
    assert await job_ids(conn) == before
    assert {one.next_run_at for one in await db.engine.jobs(conn)} == {None}


@only_timescaledb
async def test_tables_that_are_held_for_long_are_an_error_in_one_line(
    db: Database, conn: AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is half done."""
    monkeypatch.setattr(policies, "LOCK_TIMEOUT", "50ms")
    async with conn.transaction():
        await conn.execute("LOCK TABLE market_data.candles_1m IN ROW EXCLUSIVE MODE")
        with pytest.raises(DatabaseError, match="try again"):
            age(db, keep(M1=90))
    assert await job_ids(conn) == {}
    age(db, keep(M1=90))
    assert len(await job_ids(conn)) == 7


async def test_jobs_are_told_as_they_are(db: Database, conn: AsyncConnection[Any], engine: str) -> None:
    """Finest timeframe first, by the names that users know. Plain PostgreSQL does nothing by itself."""
    assert await db.engine.jobs(conn) == []
    age(db, keep(M1=10, M5=20))
    jobs = await db.engine.jobs(conn)
    if engine == "plain":
        assert jobs == []
        return
    assert [(one.what, one.relation, one.setting) for one in jobs] == [
        ("columnstore", "candles_1m", "compress after 30 days"),
        ("retention", "candles_1m", "drop after 10 days"),
        ("refresh", "candles_5m", "refresh from 2 days to 1 day ago"),
        ("retention", "candles_5m", "drop after 20 days"),
        ("refresh", "candles_15m", "refresh from 12 days to 1 day ago"),
        ("refresh", "candles_1h", "refresh from 30 days to 1 day ago"),
        ("refresh", "candles_4h", "refresh from 30 days to 1 day ago"),
        ("refresh", "candles_1d", "refresh from 30 days to 1 day ago"),
    ]
    assert {(one.every, one.last_run_at, one.last_ok) for one in jobs} == {(EVERY, None, None)}
    first = [one.next_run_at for one in jobs if one.next_run_at]
    assert len(first) == len(jobs)
    assert FIRST_RUN - MINUTE < min(first) - utc_now() < FIRST_RUN
    assert max(first) - min(first) == 5 * APART


@only_timescaledb
@pytest.mark.parametrize(("finished", "success", "ok"), [(1, True, True), (1, False, False), (None, False, None)])
async def test_a_job_tells_how_it_went(
    db: Database, conn: AsyncConnection[Any], *, finished: int | None, success: bool, ok: bool | None
) -> None:
    """Succeeded, failed, or still running; as the database's scheduler writes it down."""
    age(db, keep(M1=10))
    began = minute_floor(utc_now()) - DAY
    await conn.execute(
        "UPDATE _timescaledb_internal.bgw_job_stat SET last_start = %(began)s, last_run_success = %(success)s,"
        " last_finish = coalesce(%(began)s + %(finished)s * INTERVAL '1 minute', '-infinity')",
        {"began": began, "finished": finished, "success": success},
    )
    assert {(one.last_run_at, one.last_ok) for one in await db.engine.jobs(conn)} == {(began, ok)}


async def test_how_far_the_aggregates_are_stored_is_told(db: Database, conn: AsyncConnection[Any], engine: str) -> None:
    """Plain PostgreSQL stores them whole, always; TimescaleDB computes what is above when it is read."""
    now = minute_floor(utc_now())
    assert await db.engine.materialized(conn) == ({} if engine == "plain" else dict.fromkeys(AGGREGATED))
    for symbol in SYMBOLS:
        await put(conn, db.engine, symbol, now - 3 * DAY, now, now=now)
    await db.engine.refresh(conn, {}, now)
    settled = now - timedelta(minutes=15)
    expected = {timeframe: timeframe.floor(settled) for timeframe in AGGREGATED}
    assert await db.engine.materialized(conn) == ({} if engine == "plain" else expected)


# Retention


class Market:
    """Bars of the three symbols, all that were ever stored, and the database that they are stored in."""

    def __init__(self, db: Database, conn: AsyncConnection[Any]) -> None:
        self._db = db
        self._conn = conn
        self.bars = dict.fromkeys(SYMBOLS, Bars.empty())

    async def put(self, start: datetime, end: datetime, now: datetime, *, step: int = 7, seed: int = 0) -> None:
        for symbol in SYMBOLS:
            bars = bars_of(symbol, start, end, step, seed)
            await put(self._conn, self._db.engine, symbol, start, end, now=now, bars=bars)
            self.bars[symbol] = joined(self.bars[symbol], bars)

    async def correct(self, symbol: str, minute: datetime, now: datetime, seed: int) -> None:
        bars = bars_of(symbol, minute, minute + MINUTE, seed=seed)
        await put(self._conn, self._db.engine, symbol, minute, minute + MINUTE, now=now, bars=bars)
        self.bars[symbol] = joined(self.bars[symbol], bars)

    async def wrong(self, *, of_5m_from: datetime | None = None) -> list[object]:
        """What the aggregates serve otherwise than all bars ever stored make it."""
        served, expected = await candles(self._conn, *AGGREGATED), computed(self.bars)
        if of_5m_from is not None:
            served, expected = (
                {key: values for key, values in one.items() if key[0] is not Timeframe.M5 or key[2] >= of_5m_from}
                for one in (served, expected)
            )
        return differences(served, expected)[:5]

    async def oldest(self, timeframe: Timeframe) -> datetime:
        return min(ts for _, _, ts in await candles(self._conn, timeframe))


async def test_bars_are_dropped_by_their_age_and_no_older_candle_changes(
    db: Database, conn: AsyncConnection[Any], engine: str
) -> None:
    """Not by refreshes of the service or of the policies, nor by bars that come late, however often."""
    now = utc_now()
    start = minute_floor(now) - 60 * DAY
    retention = keep(M1=20)
    market = Market(db, conn)
    await market.put(start, minute_floor(now), now)
    await db.engine.refresh(conn, {}, now)
    assert await market.wrong() == []
    age(db, retention)
    if engine == "plain":
        assert await market.oldest(Timeframe.M1) == start
        assert await market.wrong() == []
        return
    floor = db.engine.floors(retention, now)[Timeframe.M1]
    assert floor is not None
    for round_ in range(1, 4):
        await run(conn, "retention")
        assert now - 20 * DAY - WEEK < await market.oldest(Timeframe.M1) <= now - 20 * DAY
        await run(conn, "refresh")
        assert await market.wrong() == []
        for late in (floor, floor + 3 * DAY + round_ * MINUTE, now - 2 * DAY, now - 2 * MINUTE):
            await market.correct("BTCUSD", minute_floor(late), now, round_)
        await run(conn, "refresh")
        await db.engine.refresh(conn, retention, now)
        assert await noted(conn) == 0
        assert await market.wrong() == []
        await run(conn, "refresh", "columnstore")
        assert await market.wrong() == []


async def noted(conn: AsyncConnection[Any]) -> int:
    row = await (await conn.execute("SELECT count(*) FROM market_data.pending_refreshes")).fetchone()
    return int(row[0]) if row else 0


@only_timescaledb
@pytest.mark.parametrize("chunk", [WEEK, None], ids=["5m in chunks of a week", "5m in chunks of ten weeks"])
async def test_forty_days_flow_through_while_only_ten_are_kept(
    db: Database, conn: AsyncConnection[Any], settings: type_of_settings, chunk: timedelta | None
) -> None:
    """Day by day bars come, are refreshed, and age away; every candle stays what all bars made it, to this day."""
    retention = settings(RETENTION_1M="10 days", RETENTION_5M="20 days").retention
    if chunk is not None:
        await conn.execute("ALTER MATERIALIZED VIEW market_data.candles_5m SET (timescaledb.chunk_interval = '7 days')")
    end = utc_now()
    market = Market(db, conn)
    for day in range(40, -1, -1):
        now = end - day * DAY
        today = minute_floor(now)
        await market.put(today - DAY, today, now)
        await market.correct("EURUSD", today - 3 * DAY if day < 37 else today - MINUTE, now, seed=3)
        await db.engine.refresh(conn, retention, now)
        await drop_older(conn, Timeframe.M1, now - 10 * DAY)
        await drop_older(conn, Timeframe.M5, now - 20 * DAY)
    assert end - 10 * DAY - WEEK < await market.oldest(Timeframe.M1) <= end - 10 * DAY
    oldest = await market.oldest(Timeframe.M5)
    assert (end - 20 * DAY - WEEK < oldest <= end - 20 * DAY) == (chunk is not None)
    assert await market.wrong(of_5m_from=oldest) == []
    age(db, retention)
    for kinds in (("retention", "refresh", "columnstore"), ("refresh",), ("retention", "refresh")):
        await run(conn, *kinds)
        assert await market.wrong(of_5m_from=oldest) == []
    await market.put(minute_floor(end), minute_floor(end) + 3 * MINUTE, end + 5 * MINUTE, step=1)
    await db.engine.refresh(conn, retention, end + 5 * MINUTE)
    assert await market.wrong(of_5m_from=oldest) == []


# Refresh policies


@only_timescaledb
@pytest.mark.parametrize("kept", [10, 1825])
async def test_a_symbol_that_a_policy_has_passed_is_aggregated_whole(
    db: Database, conn: AsyncConnection[Any], kept: int
) -> None:
    """A policy does not wait for the slowest symbol: what that one brings later is noted, and refreshed below."""
    now = utc_now()
    edge = minute_floor(now)
    retention = keep(M1=kept)
    age(db, retention)
    await put(conn, db.engine, "EURUSD", edge - 6 * DAY, edge - 4 * DAY, now=edge - 4 * DAY)
    await put(conn, db.engine, "BTCUSD", edge - 6 * DAY, edge - 4 * DAY - 7 * MINUTE, now=edge - 4 * DAY)
    await db.engine.refresh(conn, retention, edge - 4 * DAY)
    await put(conn, db.engine, "EURUSD", edge - 4 * DAY, edge, now=now)
    await db.engine.refresh(conn, retention, now)
    await run(conn, "refresh")
    assert await db.engine.materialized(conn) == {one: one.floor(now - DAY) for one in AGGREGATED}
    await put(conn, db.engine, "BTCUSD", edge - 4 * DAY - 7 * MINUTE, edge - 30 * MINUTE, now=now)
    assert await noted(conn) == 1
    await run(conn, "refresh")
    await put(conn, db.engine, "SPX500", edge - 6 * DAY, edge, now=now)
    await db.engine.refresh(conn, retention, now)
    assert await noted(conn) == 0
    assert await wrong_candles(conn) == []
    await run(conn, "refresh")
    assert await wrong_candles(conn) == []


@only_timescaledb
async def test_a_policy_passes_the_slowest_symbol_and_never_the_last_day(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """Its window ends with the last whole bucket that is a day old: what comes within a day is served at once."""
    now = utc_now()
    edge = minute_floor(now)
    age(db, keep(M1=1825))
    await put(conn, db.engine, "EURUSD", edge - 10 * DAY, edge, now=now)
    await run(conn, "refresh")
    assert await db.engine.materialized(conn) == {one: one.floor(now - DAY) for one in AGGREGATED}
    await put(conn, db.engine, "BTCUSD", edge - DAY, edge, now=now)
    await conn.execute("DELETE FROM market_data.pending_refreshes")
    assert await wrong_candles(conn) == []


# Columnstore


async def compressed(conn: AsyncConnection[Any]) -> dict[datetime, bool]:
    """Whether each chunk of bars is compressed, by its end."""
    rows = await conn.execute(
        "SELECT range_end, is_compressed FROM timescaledb_information.chunks"
        " WHERE hypertable_schema = 'market_data' AND hypertable_name = 'candles_1m' ORDER BY range_end"
    )
    return dict(await rows.fetchall())


@only_timescaledb
@pytest.mark.parametrize("recheck_days", [30, 45])
async def test_old_bars_are_compressed_and_can_still_be_corrected(
    db: Database, conn: AsyncConnection[Any], recheck_days: int
) -> None:
    """Chunks that lie wholly beyond every re-check: there a late bar, a changed and an unchanged one are as ever."""
    now = utc_now()
    start = minute_floor(now) - 70 * DAY
    market = Market(db, conn)
    await market.put(start, minute_floor(now), now)
    await db.engine.refresh(conn, {}, now)
    age(db, keep(), recheck_days)
    for _ in range(2):
        await run(conn, "columnstore")
        chunks = await compressed(conn)
        assert chunks == {end: end <= now - recheck_days * DAY for end in chunks}
        assert 3 <= sum(chunks.values()) < len(chunks)
    assert await market.wrong() == []

    bars = market.bars["EURUSD"]
    old = bars.take(bars.ts < to_ms(start + 7 * DAY))
    again = await put(conn, db.engine, "EURUSD", start, start + 7 * DAY, now=now, bars=old)
    assert (again.new, again.changed, again.unchanged) == (0, 0, len(old))
    await market.put(start + DAY, start + 2 * DAY, now, step=7, seed=1)
    await market.put(start + 3 * DAY, start + 4 * DAY, now, step=1, seed=2)
    await market.correct("EURUSD", start + 5 * DAY, now, seed=3)
    await run(conn, "columnstore")
    await db.engine.refresh(conn, {}, now)
    assert await wrong_candles(conn) == []
    await run(conn, "columnstore", "refresh")
    assert await wrong_candles(conn) == []


# Purge


@pytest.mark.slow
async def test_a_purged_symbol_is_gone_at_every_level_and_stays_gone(
    db: Database, conn: AsyncConnection[Any], engine: str
) -> None:
    """Where its bars were dropped already, where they are compressed, and more than a statement may decompress."""
    now = utc_now()
    edge = minute_floor(now)
    retention = keep(M1=110)
    market = Market(db, conn)
    await market.put(edge - 130 * DAY, edge, now, step=31)
    many = bars_of("BTCUSD", edge - 109 * DAY, edge - 31 * DAY)
    assert len(many) > 110_000
    await put(conn, db.engine, "BTCUSD", edge - 109 * DAY, edge - 31 * DAY, now=now, bars=many)
    await db.engine.refresh(conn, {}, now)
    age(db, retention)
    if engine == "timescaledb":
        await run(conn, "retention", "columnstore")
        assert edge - 120 * DAY < await market.oldest(Timeframe.M1) < edge - 109 * DAY
        assert sum((await compressed(conn)).values()) > 9
    for timeframe in AGGREGATED:
        assert await market.oldest(timeframe) == timeframe.floor(edge - 130 * DAY)
    market.bars["BTCUSD"] = joined(market.bars["BTCUSD"], many)
    assert await market.wrong() == []

    async with conn.transaction():
        await db.engine.purge(conn, "BTCUSD")
    del market.bars["BTCUSD"]
    assert {symbol for _, symbol, _ in await candles(conn, *Timeframe)} == {"EURUSD", "SPX500"}
    assert await market.wrong() == []
    for back in (108 * DAY, 50 * DAY, 3 * DAY, MINUTE):
        await market.correct("EURUSD", edge - back, now, seed=1)
        await db.engine.refresh(conn, retention, now)
        if engine == "timescaledb":
            await run(conn, "retention", "refresh", "columnstore")
        assert {symbol for _, symbol, _ in await candles(conn, *Timeframe)} == {"EURUSD", "SPX500"}
        assert await market.wrong() == []


async def test_a_purge_that_is_rolled_back_takes_nothing_away(db: Database, conn: AsyncConnection[Any]) -> None:
    now = utc_now()
    market = Market(db, conn)
    await market.put(minute_floor(now) - 9 * DAY, minute_floor(now), now)
    await db.engine.refresh(conn, {}, now)
    async with conn.transaction(force_rollback=True):
        await db.engine.purge(conn, "BTCUSD")
        assert {symbol for _, symbol, _ in await candles(conn, *Timeframe)} == {"EURUSD", "SPX500"}
    assert await market.wrong() == []


async def waits_for_a_table(conn: AsyncConnection[Any]) -> bool:
    """Whether some session of this database waits for a lock on a table."""
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'relation'"
    return await (await conn.execute(waiting)).fetchone() is not None


@only_timescaledb
async def test_a_refresh_that_runs_meanwhile_does_not_bring_a_purged_symbol_back(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """It waits for the purge, and then finds nothing of the symbol."""
    now = utc_now()
    market = Market(db, conn)
    await market.put(minute_floor(now) - 9 * DAY, minute_floor(now), now)
    async with db.connection() as other:
        async with conn.transaction():
            await db.engine.purge(conn, "BTCUSD")
            refresh = asyncio.create_task(db.engine.refresh(other, {}, now))
            async with db.connection() as third:
                while not refresh.done() and not await waits_for_a_table(third):  # noqa: ASYNC110 - it tells no one
                    await asyncio.sleep(0.02)
            assert not refresh.done()
        await refresh
    assert {symbol for _, symbol, _ in await candles(conn, *Timeframe)} == {"EURUSD", "SPX500"}
    del market.bars["BTCUSD"]
    assert await market.wrong() == []
