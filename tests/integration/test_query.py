"""What a reader gets: candles of a range or the latest ones, page by page, and the truth about their completeness."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection, sql

from service import catalogue, query, windows
from service.api.rows import Candle, candles
from service.bars import from_ms, to_ms
from service.coverage import MINUTE, Retention
from service.db.connect import Database
from service.db.preflight import checked
from service.errors import UnknownSymbol
from service.frames import Ask, Order, Page
from service.proof import Terms
from service.ranges import Range
from service.spans import parse
from service.timeframes import Timeframe
from tests.integration.marketdata import (
    CORRECTED,
    LATELY,
    LONG_AGO,
    NOW,
    REJECTED,
    SETTLE,
    SETTLED,
    SOURCE,
    at,
    filled,
    invent,
    minutes,
    only_active,
    put,
)

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
NOON = at("2024-03-05 12:00")


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def readable(request: pytest.FixtureRequest) -> Iterator[Database]:
    """The filled database, which no test here changes."""
    with filled(request.getfixturevalue(f"{request.param}_server")) as db:
        yield db


@pytest.fixture
async def conn(readable: Database) -> AsyncIterator[AsyncConnection[Any]]:
    async with checked(readable.url, readable.engine.name) as db, db.connection() as one:
        yield one


async def ask(
    conn: AsyncConnection[Any],
    db: Database,
    symbol: str,
    timeframe: Timeframe = Timeframe.M1,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    limit: int = 500,
    order: Order = "asc",
    now: datetime = NOW,
    settle: timedelta = SETTLE,
    retention: Retention | None = None,
) -> Page:
    terms = Terms(now=now, settle=settle, floors=db.engine.floors(retention or {}, now))
    span = parse(timeframe.value)
    asked = Ask(symbol=symbol, span=span, start=start, end=end, limit=limit, order=order)
    return await query.page(conn, terms, asked)


def candles_of(found: Page) -> list[Candle]:
    """As a reader gets them: absent values are None."""
    return msgspec.json.decode(msgspec.json.encode(candles(found.frame)), type=list[Candle])


async def all_starts(conn: AsyncConnection[Any], symbol: str, timeframe: Timeframe) -> list[int]:
    """The starts of all candles in the relation itself, in Unix ms."""
    text = sql.SQL("SELECT ts FROM {} WHERE symbol = %s ORDER BY ts")
    relation = sql.Identifier("market_data", timeframe.table)
    cursor = await conn.execute(text.format(relation), (symbol,))
    return [to_ms(ts) for (ts,) in await cursor.fetchall()]


def starts(found: Page) -> list[datetime]:
    return [from_ms(candle.t) for candle in candles_of(found)]


def told(found: Page) -> list[tuple[datetime, datetime, str]]:
    return [(*gap.range, gap.reason) for gap in found.head.missing]


def not_final(found: Page) -> list[datetime]:
    return [from_ms(candle.t) for candle in candles_of(found) if candle.final is False]


# Which candles


async def test_a_range_holds_the_candles_that_start_in_it(readable: Database, conn: AsyncConnection[Any]) -> None:
    """Half-open: the start is in, the end is out, whatever lies on no bucket's start."""
    hours = await ask(conn, readable, "EURUSD", Timeframe.H1, start=at("2024-03-04 10:00"), end=at("2024-03-04 12:00"))
    assert starts(hours) == [at("2024-03-04 10:00"), at("2024-03-04 11:00")]
    between = await ask(
        conn, readable, "EURUSD", Timeframe.H1, start=at("2024-03-04 10:01"), end=at("2024-03-04 12:01")
    )
    assert starts(between) == [at("2024-03-04 11:00"), at("2024-03-04 12:00")]


async def test_a_candle_is_the_row_of_its_relation(readable: Database, conn: AsyncConnection[Any]) -> None:
    for symbol in ("EURUSD", "SPX500"):
        for timeframe in Timeframe:
            found = await ask(conn, readable, symbol, timeframe, start=LATELY.start, limit=50_000)
            text = sql.SQL("SELECT * FROM {} WHERE symbol = %s AND ts >= %s ORDER BY ts")
            relation = sql.Identifier("market_data", timeframe.table)
            cursor = await conn.execute(text.format(relation), (symbol, LATELY.start), binary=True)
            assert [(c.o, c.h, c.l, c.c, c.v, c.vw, c.n) for c in candles_of(found)] == [
                row[2:] for row in await cursor.fetchall()
            ]
            assert all((c.v is None) == (c.n is None) == (symbol == "SPX500") for c in candles_of(found))


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_without_a_start_the_latest_candles_come(
    readable: Database, conn: AsyncConnection[Any], order: Order
) -> None:
    found = await ask(conn, readable, "EURUSD", Timeframe.M5, limit=4, order=order)
    expected = [NOON - 10 * MINUTE, NOON - 5 * MINUTE, NOON, NOON + 5 * MINUTE]
    assert starts(found) == (expected if order == "asc" else expected[::-1])
    before = await ask(conn, readable, "EURUSD", Timeframe.M5, end=NOON, limit=2, order=order)
    assert sorted(starts(before)) == expected[:2]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.H4, Timeframe.D1])
async def test_the_latest_candles_are_found_across_years_without_any(
    readable: Database, conn: AsyncConnection[Any], order: Order, timeframe: Timeframe
) -> None:
    everything = await all_starts(conn, "EURUSD", timeframe)
    lately = sum(start >= to_ms(LATELY.start) for start in everything)
    found = await ask(conn, readable, "EURUSD", timeframe, limit=lately + 1, order=order)
    assert sorted(candle.t for candle in candles_of(found)) == everything[-lately - 1 :]
    assert found.head.asked == Range(LONG_AGO.end - timeframe.length, NOW)


async def test_fewer_candles_than_asked_for_are_all_that_there_are(
    readable: Database, conn: AsyncConnection[Any]
) -> None:
    found = await ask(conn, readable, "EURUSD", Timeframe.D1, limit=50_000)
    assert [candle.t for candle in candles_of(found)] == await all_starts(conn, "EURUSD", Timeframe.D1)
    assert found.head.more is None


async def test_a_range_before_and_one_after_all_bars_is_empty(readable: Database, conn: AsyncConnection[Any]) -> None:
    for start, end in ((at("1970-01-01"), LONG_AGO.start), (NOW, NOW + DAY), (LONG_AGO.end, LATELY.start)):
        found = await ask(conn, readable, "EURUSD", start=start, end=end)
        assert candles_of(found) == []
        assert found.head.more is None


async def test_an_unknown_symbol_is_told_with_the_nearest(readable: Database, conn: AsyncConnection[Any]) -> None:
    with pytest.raises(UnknownSymbol) as caught:
        await ask(conn, readable, "EURUSB")
    assert caught.value.nearest[0] == "EURUSD"


# Page by page

instants = st.one_of(
    st.integers(0, 5 * 1440).map(lambda minute: LATELY.start + minute * MINUTE),
    st.integers(-10, 4 * 1440).map(lambda minute: LONG_AGO.start + minute * MINUTE),
    st.just(LONG_AGO.end + 300 * DAY),
)


@settings(max_examples=25)
@given(
    st.tuples(instants, instants),
    st.sampled_from([1, 2, 7, 100, 1000, 50_000]),
    st.sampled_from([Timeframe.M5, Timeframe.H1, Timeframe.D1]),
    st.sampled_from(["asc", "desc"]),
    st.booleans(),
)
def test_the_pages_of_a_range_hold_every_candle_exactly_once(  # noqa: PLR0917 - hypothesis passes them by place
    readable: Database,
    pair: tuple[datetime, datetime],
    limit: int,
    timeframe: Timeframe,
    order: Order,
    bounded: bool,  # noqa: FBT001
) -> None:
    """In either order, with any limit, over gaps of years; none of more than the limit, only the last one of less."""
    start, end = min(pair), max(pair) + MINUTE
    first = start if bounded or order == "asc" else None

    async def pages() -> tuple[list[int], list[int]]:
        async with checked(readable.url, readable.engine.name) as db, db.connection() as conn:
            found: list[int] = []
            sizes: list[int] = []
            begin, stop = first, end
            while len(sizes) < 40:
                page = await ask(conn, readable, "EURUSD", timeframe, start=begin, end=stop, limit=limit, order=order)
                found += [candle.t for candle in candles_of(page)]
                sizes.append(len(candles_of(page)))
                if page.head.more is None:
                    break
                begin, stop = (page.head.more, stop) if order == "asc" else (begin, page.head.more)
            everything = await all_starts(conn, "EURUSD", timeframe)
        inside = [t for t in everything if (first is None or to_ms(first) <= t) and t < to_ms(end)]
        assert all(size == limit for size in sizes[:-1])
        expected = inside if order == "asc" else inside[::-1]
        return found, expected if len(sizes) < 40 else expected[: len(found)]

    found, expected = asyncio.run(pages())
    assert found == expected


async def test_the_latest_candles_in_ascending_order_have_no_next_page(
    readable: Database, conn: AsyncConnection[Any]
) -> None:
    """Nothing comes after the latest."""
    assert (await ask(conn, readable, "EURUSD", limit=3)).head.more is None
    assert (await ask(conn, readable, "EURUSD", limit=3, order="desc")).head.more == NOON + 4 * MINUTE


# Complete, and what is missing


async def test_a_covered_range_is_complete(readable: Database, conn: AsyncConnection[Any]) -> None:
    """A night without bars is no gap."""
    for timeframe in Timeframe:
        found = await ask(conn, readable, "EURUSD", timeframe, start=LATELY.start, end=at("2024-03-05"), limit=50_000)
        assert found.head.complete
        assert found.head.missing == ()
        assert not_final(found) == []
        assert found.head.settled_to == at("2024-03-05")
        assert found.head.state.source == SOURCE
    night = await ask(conn, readable, "SPX500", start=at("2024-03-04 02:00"), end=at("2024-03-04 03:00"))
    assert night.head.complete
    assert candles_of(night) == []


async def test_a_range_up_to_now_is_complete_as_far_as_it_is_settled(
    readable: Database, conn: AsyncConnection[Any]
) -> None:
    found = await ask(conn, readable, "EURUSD", start=NOON - DAY, limit=50_000)
    assert found.head.complete
    assert found.head.asked == Range(NOON - DAY, NOW)
    assert not_final(found) == minutes(SETTLED, LATELY.end)


async def test_a_range_of_which_nothing_is_settled_is_not_complete(
    readable: Database, conn: AsyncConnection[Any]
) -> None:
    for start in (SETTLED, NOON):
        found = await ask(conn, readable, "EURUSD", start=start)
        assert not found.head.complete
        assert found.head.missing == ()
    assert (await ask(conn, readable, "EURUSD", start=SETTLED - MINUTE)).head.complete


async def test_the_latest_candles_are_judged_from_the_first_of_them_on(
    readable: Database, conn: AsyncConnection[Any]
) -> None:
    found = await ask(conn, readable, "EURUSD", Timeframe.H1, limit=24)
    assert found.head.asked == Range(NOON - 23 * timedelta(hours=1), NOW)
    assert found.head.complete
    across = await ask(conn, readable, "EURUSD", Timeframe.D1, limit=6)
    assert told(across) == [(LONG_AGO.end, LATELY.start, "never requested")]


async def test_each_missing_range_has_its_reason(readable: Database, conn: AsyncConnection[Any]) -> None:
    found = await ask(conn, readable, "EURUSD", Timeframe.D1, start=LONG_AGO.start - DAY)
    assert told(found) == [
        (LONG_AGO.start - DAY, LONG_AGO.start, "never requested"),
        (LONG_AGO.end, LATELY.start, "never requested"),
    ]
    found = await ask(conn, readable, "GBPUSD", start=LATELY.start - DAY)
    assert told(found) == [
        (LATELY.start - DAY, LATELY.start, "never requested"),
        (LATELY.start, at("2024-03-03"), "pending"),
    ]
    found = await ask(conn, readable, "USDJPY", start=at("2024-03-04"))
    assert told(found) == [(REJECTED, REJECTED + MINUTE, "unavailable")]
    assert not found.head.complete


async def test_what_lies_below_the_floor_is_expired_where_bars_age(
    readable: Database, conn: AsyncConnection[Any]
) -> None:
    """On plain PostgreSQL nothing ages."""
    floor = at("2024-03-03")
    retention = {Timeframe.M1: timedelta(days=3)}
    found = await ask(conn, readable, "EURUSD", start=floor - DAY, end=NOON, retention=retention)
    assert told(found) == ([(floor - DAY, floor, "expired")] if readable.engine.name == "timescaledb" else [])
    assert found.head.complete == (readable.engine.name == "plain")
    days = await ask(conn, readable, "EURUSD", Timeframe.D1, start=floor - DAY, end=NOON, retention=retention)
    assert days.head.complete


async def test_a_symbol_without_a_bar_says_so_and_claims_nothing(
    readable: Database, conn: AsyncConnection[Any]
) -> None:
    found = await ask(conn, readable, "BTCUSD", start=LATELY.start)
    assert found.head.no_data
    assert not found.head.complete
    assert found.head.settled_to is None
    assert candles_of(found) == []
    assert told(found) == [(LATELY.start, at("2024-03-04 00:07"), "pending")]
    latest = await ask(conn, readable, "ETHUSD", Timeframe.H1, limit=10)
    assert latest.head.no_data
    assert latest.head.asked == Range(NOW - timedelta(hours=10), NOW)


async def test_after_a_session_all_is_settled_up_to_its_last_bar(
    readable: Database, conn: AsyncConnection[Any]
) -> None:
    """The minutes since may still fill; a night later the open ones of them are lacking, the closed ones are not."""
    found = await ask(conn, readable, "SPX500", Timeframe.H1, start=at("2024-03-04"), end=NOW)
    assert found.head.settled_to == at("2024-03-04 21:00")
    assert found.head.complete
    assert not_final(found) == []
    later = await ask(conn, readable, "SPX500", Timeframe.H1, start=at("2024-03-04"), now=NOW + 2 * DAY)
    assert told(later) == [
        (at("2024-03-04 21:00"), LATELY.end, "pending"),
        (LATELY.end, at("2024-03-05 21:00"), "never requested"),
    ]


# Final or not


async def test_a_candle_that_is_not_over_is_not_final(readable: Database, conn: AsyncConnection[Any]) -> None:
    for timeframe in Timeframe:
        found = await ask(conn, readable, "EURUSD", timeframe, start=at("2024-03-04"), limit=50_000)
        expected = [start for start in starts(found) if start + timeframe.length > SETTLED]
        assert not_final(found) == expected
        assert expected


async def test_a_candle_is_final_only_as_far_as_it_counts_as_settled_today(
    readable: Database, conn: AsyncConnection[Any]
) -> None:
    """SETTLE_MINUTES was raised since it was fetched: what is covered may be revised again."""
    found = await ask(conn, readable, "EURUSD", Timeframe.H1, start=at("2024-03-05"), settle=timedelta(hours=3))
    assert found.head.settled_to == at("2024-03-05 09:07")
    assert not_final(found) == [at("2024-03-05 09:00"), at("2024-03-05 10:00"), at("2024-03-05 11:00"), NOON]


async def test_a_candle_that_is_not_wholly_covered_is_not_final(readable: Database, conn: AsyncConnection[Any]) -> None:
    """Part of it was never asked for, is still to fetch, or cannot be had."""
    found = await ask(conn, readable, "USDJPY", Timeframe.H1, start=at("2024-03-04"), end=at("2024-03-05"))
    assert not_final(found) == [Timeframe.H1.floor(REJECTED)]
    found = await ask(conn, readable, "EURUSD", Timeframe.H4, start=LONG_AGO.start, end=LATELY.end)
    assert not_final(found) == [at("2024-03-05 08:00"), NOON]
    minute = await ask(conn, readable, "USDJPY", start=REJECTED - MINUTE, end=REJECTED + 2 * MINUTE)
    assert (starts(minute), not_final(minute)) == ([REJECTED - MINUTE, REJECTED + MINUTE], [])


async def test_a_candle_whose_correction_is_not_refreshed_yet_is_not_final(
    readable: Database, conn: AsyncConnection[Any]
) -> None:
    """Its bars are; on plain PostgreSQL there is no such time."""
    for timeframe in Timeframe:
        found = await ask(
            conn, readable, "XAUUSD", timeframe, start=at("2024-03-03"), end=at("2024-03-05"), limit=5_000
        )
        stale = timeframe is not Timeframe.M1 and readable.engine.name == "timescaledb"
        assert found.head.complete == (not stale)
        assert told(found) == ([(*CORRECTED, "pending")] if stale else [])
        expected = [
            start
            for start in starts(found)
            if stale and start < CORRECTED.end and CORRECTED.start < start + timeframe.length
        ]
        assert not_final(found) == expected
    other = await ask(conn, readable, "EURUSD", Timeframe.H1, start=at("2024-03-03"), end=at("2024-03-05"))
    assert other.head.complete


async def test_final_is_left_out_where_it_is_true(readable: Database, conn: AsyncConnection[Any]) -> None:
    found = await ask(conn, readable, "EURUSD", start=SETTLED - MINUTE, end=SETTLED + MINUTE)
    final, other = (msgspec.to_builtins(candle) for candle in candles_of(found))
    assert set(final) == {"t", "o", "h", "l", "c", "v", "vw", "n"}
    assert set(other) - set(final) == {"final"}


# One moment


async def test_candles_and_their_completeness_are_of_one_moment(
    database: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write and a refresh in the midst of an answer: it is wholly of the time before, or after."""
    real = windows.window
    async with checked(database, engine) as db, db.connection() as conn, db.connection() as other:
        now = NOON
        await only_active(conn, "EURUSD")
        await put(conn, db.engine, "EURUSD", NOON - DAY, NOON, now=now)
        await db.engine.refresh(conn, {}, now)
        written = seed = 0

        async def meanwhile(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - passed on as it is
            nonlocal written
            found = await real(*args, **options)
            if not written:
                start, later = now - timedelta(hours=5), now + timedelta(hours=5)
                await put(other, db.engine, "EURUSD", start, later, now=later, bars=invent(minutes(start, later), seed))
                await db.engine.refresh(other, {}, later)
            written += 1
            return found

        for timeframe in Timeframe:
            before = await ask(conn, db, "EURUSD", timeframe, now=now)
            written, seed = 0, seed + 1
            monkeypatch.setattr(windows, "window", meanwhile)
            during = await ask(conn, db, "EURUSD", timeframe, now=now)
            monkeypatch.setattr(windows, "window", real)
            again = await ask(conn, db, "EURUSD", timeframe, now=now)
            assert candles_of(again) != candles_of(before)
            assert (during.head, candles_of(during)) in [(one.head, candles_of(one)) for one in (before, again)]
            now += timedelta(hours=5)


# What it costs


def windows_read(monkeypatch: pytest.MonkeyPatch) -> list[Range]:
    """Notes from now on which windows are read of the database."""
    asked: list[Range] = []
    real = windows.window

    async def window(conn: Any, symbol: str, stored: Any, low: int, high: int, **options: Any) -> Any:  # noqa: ANN401
        asked.append(Range(from_ms(low), from_ms(high)))
        return await real(conn, symbol, stored, low, high, **options)

    monkeypatch.setattr(windows, "window", window)
    return asked


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_the_latest_candles_cost_the_same_however_long_the_history_is(
    readable: Database, conn: AsyncConnection[Any], order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read of the database lies near the end, bounded on both sides."""
    asked = windows_read(monkeypatch)
    for timeframe in (Timeframe.M1, Timeframe.M5, Timeframe.H1):
        asked.clear()
        await ask(conn, readable, "EURUSD", timeframe, limit=10, order=order)
        first, only = asked
        assert not first.length  # where the symbol ends
        assert only.length <= 15 * timeframe.length


async def test_a_gap_of_years_costs_a_few_looks(
    readable: Database, conn: AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each twice as long as the one before."""
    asked = windows_read(monkeypatch)
    await ask(conn, readable, "EURUSD", start=LONG_AGO.end - 5 * MINUTE, limit=10)
    assert 10 < len(asked) < 20
    assert all(one.end == other.start for one, other in pairwise(asked))


async def test_what_lies_below_the_watermark_is_read_from_what_is_materialised(
    database: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the symbol is known; and no candle is lost where somebody empties an aggregate meanwhile."""
    real, ways = windows._window, []

    def window(*args: Any, materialized: bool, **options: Any) -> bytes:  # noqa: ANN401 - passed on as it is
        ways.append(materialized)
        return real(*args, materialized=materialized, **options)

    monkeypatch.setattr(windows, "_window", window)
    async with checked(database, engine) as db, db.connection() as conn:
        await only_active(conn, "EURUSD")
        await put(conn, db.engine, "EURUSD", NOON - 3 * DAY, NOON, now=NOON)
        await db.engine.refresh(conn, {}, NOON)
        terms = Terms(now=NOON, settle=SETTLE, floors=db.engine.floors({}, NOON))
        for timeframe in (Timeframe.M5, Timeframe.H4, Timeframe.D1):
            span = parse(timeframe.value)
            first, end = NOON - 3 * DAY, NOON - 12 * HOUR
            closed = Ask(symbol="EURUSD", span=span, start=first, end=end, limit=1000)
            state = (await query.page(conn, terms, closed)).head.state
            whole = await query.page(conn, terms, closed, known=state)
            forming = msgspec.structs.replace(closed, end=NOON + 12 * HOUR)
            await query.page(conn, terms, forming, known=state)
            assert ways == [False, engine == "timescaledb", False]
            assert starts(whole) == [from_ms(start) for start in span.edges(to_ms(first), to_ms(end))]
            ways.clear()
            if engine == "timescaledb":
                await conn.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier("market_data", timeframe.table)))
                again = await query.page(conn, terms, closed, known=state)
                assert ways == [True, False]
                # Sums are added up in another order.
                assert [(c.t, c.o, c.h, c.l, c.c, c.n) for c in candles_of(again)] == [
                    (c.t, c.o, c.h, c.l, c.c, c.n) for c in candles_of(whole)
                ]
                ways.clear()


async def test_a_refresh_ends_what_was_known_of_its_symbols_alone(database: str, engine: str) -> None:
    """So does whatever else changes their state, or takes them away."""
    async with checked(database, engine) as db, db.connection() as conn:
        await only_active(conn, "EURUSD", "GBPUSD")

        async def versions() -> list[int | None]:
            return [await windows.version(conn, symbol) for symbol in ("EURUSD", "GBPUSD")]

        for symbol in ("EURUSD", "GBPUSD"):
            await put(conn, db.engine, symbol, NOON - DAY, NOON, now=NOON)
        await db.engine.refresh(conn, {}, NOON)
        before = await versions()
        assert await versions() == before
        await put(conn, db.engine, "EURUSD", NOON - DAY, NOON, now=NOON, bars=invent(minutes(NOON - DAY, NOON), 9))
        written = await versions()
        await db.engine.refresh(conn, {}, NOON)
        refreshed = await versions()
        assert written[0] != before[0]
        assert (refreshed[0] == written[0]) == (engine == "plain")
        assert before[1] == written[1] == refreshed[1]
        await catalogue.remove(conn, db.engine, "EURUSD", purge=True)
        assert await versions() == [None, before[1]]


async def test_a_window_reads_no_more_rows_than_it_spans(conn: AsyncConnection[Any]) -> None:
    """Also through a real-time aggregate, which reads all that its bounds allow before a LIMIT cuts it."""
    for timeframe in (Timeframe.M1, Timeframe.M5, Timeframe.D1):
        window = windows._window(timeframe, newest=True, known=False, materialized=False)
        text = b"EXPLAIN (ANALYZE, FORMAT JSON) " + window
        values = {"symbol": "EURUSD", "start": NOW - 14 * timeframe.length, "end": NOW, "limit": 11}
        row = await (await conn.execute(text, values)).fetchone()
        assert row is not None
        assert _rows_read(row[0][0]["Plan"]) <= 14 * timeframe.length / MINUTE + 14


def _rows_read(node: dict[str, Any]) -> float:
    """Rows of candles that the scans of a plan have read."""
    below = sum(_rows_read(child) for child in node.get("Plans", ()))
    if "Scan" in node["Node Type"] and "Relation Name" in node:
        if "candles" not in node["Relation Name"] and "_hyper_" not in node["Relation Name"]:
            return below  # the ledger and what else is known of a symbol
        return below + float((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
    return below
