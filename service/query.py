"""Reads candles together with the proof of their completeness: bars, ledger and changes in one snapshot."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, LiteralString

import msgspec
from psycopg import AsyncConnection, sql

from service import coverage
from service.bars import from_ms, to_ms
from service.coverage import Ledger, Missing, Retention
from service.db.connect import as_ranges
from service.db.engines import Engine
from service.ledger import COLUMNS, FROM, from_row, unknown
from service.ranges import Range, Ranges
from service.timeframes import EPOCH, Timeframe

Order = Literal["asc", "desc"]
READ_AHEAD = 1.25
"""The first look for N candles spans this many times N buckets, each further one twice as many as the last."""


class Candle(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One candle; prices unadjusted, in the instrument's quote unit."""

    t: int
    """Start, Unix ms UTC."""
    o: float
    h: float
    l: float  # noqa: E741 - the provider's field name
    c: float
    v: float | None
    """Volume; null where the source has none."""
    vw: float | None
    """Volume-weighted average price; null where the source has none or nothing was traded."""
    n: int | None
    """Number of trades (forex: quotes); null where the source has none."""
    final: bool | msgspec.UnsetType = msgspec.UNSET
    """Present, as false, while the candle may still change: not over, not settled, not wholly covered, or stale."""


class Candles(msgspec.Struct, frozen=True, kw_only=True):
    """Candles of one symbol, and what is known of their completeness."""

    symbol: str
    timeframe: Timeframe
    asked: Range
    """The range that completeness is judged for: as asked, or from the first candle on when only a number was asked."""
    complete: bool
    """Nothing of `asked` up to `settled_to` is missing, and something of it is settled."""
    no_data: bool
    """The symbol has no bar at all."""
    settled_to: datetime | None
    """Up to where (exclusive) the provider neither revises nor delays; None without any bar."""
    missing: tuple[Missing, ...]
    candles: tuple[Candle, ...]
    start: datetime | None
    """The start that was asked for, if any."""
    more: datetime | None
    """Where the next page begins (ascending: its `from`, descending: its `to`); None at the end."""
    source: str | None


class _State(msgspec.Struct, frozen=True, kw_only=True):
    ledger: Ledger
    unrefreshed: Ranges
    source: str | None


async def candles(
    conn: AsyncConnection[Any],
    engine: Engine,
    symbol: str,
    timeframe: Timeframe,
    *,
    start: datetime | None,
    end: datetime | None,
    limit: int,
    order: Order,
    now: datetime,
    settle: timedelta,
    retention: Retention,
) -> Candles:
    """Candles whose start lies in `[start, end)`, at most `limit` of them.

    start None: the latest `limit` before `end`. end None: now. Costs O(limit), however long the history is.
    Raises UnknownSymbol with the nearest names.
    """
    stop = now if end is None else end
    newest_first = order == "desc" or start is None
    async with conn.transaction():
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        state = await _state(conn, symbol)
        look = _Look(symbol=symbol, timeframe=timeframe, limit=limit + 1, newest_first=newest_first)
        rows = await _read(conn, state.ledger, look, start, stop)
    page = rows[:limit]
    more: datetime | None = None
    if len(rows) > limit and (start is not None or order == "desc"):
        more = from_ms(page[-1][0]) + (timedelta() if newest_first else timeframe.length)
    if newest_first:
        page.reverse()
    asked_from = start or (from_ms(page[0][0]) if page else stop - limit * timeframe.length)
    settled = coverage.settled_to(state.ledger, now, settle)
    found = _candles(page, timeframe, _doubtful(state, timeframe, page, settled))
    gaps = coverage.missing(
        state.ledger,
        Range(asked_from, stop),
        floors=engine.floors(retention, now),
        timeframe=timeframe,
        settled=settled,
        unrefreshed=state.unrefreshed,
    )
    no_data = state.ledger.last_bar is None
    return Candles(
        symbol=symbol,
        timeframe=timeframe,
        asked=Range(asked_from, stop),
        complete=not no_data and not gaps and asked_from < settled,
        no_data=no_data,
        settled_to=None if no_data else settled,
        missing=tuple(gaps),
        candles=tuple(found if order == "asc" else reversed(found)),
        start=start,
        more=more,
        source=state.source,
    )


class _Look(msgspec.Struct, frozen=True, kw_only=True):
    """What is read, and from which end."""

    symbol: str
    timeframe: Timeframe
    limit: int
    newest_first: bool


async def _state(conn: AsyncConnection[Any], symbol: str) -> _State:
    cursor = await conn.execute(_STATE, (symbol,), binary=True)
    row = await cursor.fetchone()
    if row is None:
        raise await unknown(conn, symbol)
    *known, unrefreshed, source = row
    return _State(ledger=from_row(known), unrefreshed=as_ranges(unrefreshed), source=source)


async def _read(
    conn: AsyncConnection[Any], ledger: Ledger, look: _Look, start: datetime | None, stop: datetime
) -> list[tuple[Any, ...]]:
    """Rows from one end of the range on, in windows that double: a LIMIT alone would read the whole history."""
    if ledger.first_bar is None or ledger.last_bar is None:
        return []
    low = look.timeframe.floor(ledger.first_bar)
    low, high = low if start is None else max(low, start), min(stop, ledger.last_bar + coverage.MINUTE)
    span = READ_AHEAD * look.limit * look.timeframe.length
    rows: list[tuple[Any, ...]] = []
    while low < high and len(rows) < look.limit:
        if look.newest_first:
            window = Range(max(low, high - span) if high - low > span else low, high)
            high = window.start
        else:
            window = Range(low, low + span if high - low > span else high)
            low = window.end
        rows += await _window(conn, look, window, look.limit - len(rows))
        span *= 2
    return rows


async def _window(conn: AsyncConnection[Any], look: _Look, window: Range, limit: int) -> list[tuple[Any, ...]]:
    query = sql.SQL(_WINDOW).format(
        relation=sql.Identifier("market_data", look.timeframe.table),
        direction=sql.SQL("DESC" if look.newest_first else "ASC"),
    )
    values = {"symbol": look.symbol, "start": window.start, "end": window.end, "limit": limit}
    cursor = await conn.execute(query, values, binary=True, prepare=True)
    return await cursor.fetchall()


def _doubtful(state: _State, timeframe: Timeframe, rows: Sequence[tuple[Any, ...]], settled: datetime) -> Ranges:
    """The parts of the span of these rows in which a candle is not final."""
    if not rows:
        return Ranges()
    span = Ranges.of(from_ms(rows[0][0]), from_ms(rows[-1][0]) + timeframe.length)
    unsettled = Ranges.of(settled, max(settled, span.end or settled))
    stale = Ranges() if timeframe is Timeframe.M1 else state.unrefreshed & span
    return (span - state.ledger.covered) | (unsettled & span) | stale


def _candles(rows: Sequence[tuple[Any, ...]], timeframe: Timeframe, doubtful: Ranges) -> list[Candle]:
    """Rows, ascending, as candles; those that reach into a doubtful part are marked."""
    starts = [row[0] for row in rows]
    length = to_ms(EPOCH + timeframe.length)
    marked: set[int] = set()
    for part in doubtful:
        marked.update(range(bisect_right(starts, to_ms(part.start) - length), bisect_left(starts, to_ms(part.end))))
    return [
        Candle(t=t, o=o, h=h, l=low, c=c, v=v, vw=vw, n=n, final=False if place in marked else msgspec.UNSET)
        for place, (t, o, h, low, c, v, vw, n) in enumerate(rows)
    ]


_STATE = f"""
    SELECT
        {COLUMNS},
        (
            SELECT range_agg(c.range)
            FROM market_data.pending_refreshes AS p JOIN market_data.changes AS c ON c.id = p.change_id
            WHERE c.symbol = sync_state.symbol
        ),
        (SELECT source FROM market_data.installation)
    {FROM}
    WHERE symbol = %s
"""  # noqa: S608 - constants only
_WINDOW: LiteralString = """
    SELECT (extract(epoch FROM ts) * 1000)::bigint, open, high, low, close, volume, vwap, trades
    FROM {relation}
    WHERE symbol = %(symbol)s AND ts >= %(start)s AND ts < %(end)s
    ORDER BY ts {direction}
    LIMIT %(limit)s
"""
