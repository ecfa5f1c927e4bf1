"""Whole days as the provider knows them: the last one of a ticker that is over, and one day of a whole market."""

from collections.abc import Sequence
from datetime import datetime, time
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

import msgspec
from psycopg import AsyncConnection, sql

from service import coverage, ledger, proof
from service.bars import Bars, from_ms, to_ms
from service.coverage import Ledger
from service.db.connect import as_range, as_ranges
from service.look import Look, collect
from service.proof import Head, Terms
from service.provider_calls.markets import Market
from service.ranges import Range, Ranges
from service.spans import Span
from service.zones import DAY_MS, local_date

_CLOSE = time(16)
"""Of the US markets, to which the provider dates their days."""


class DayBar(msgspec.Struct, frozen=True, kw_only=True):
    """A day of one ticker; what a source does not have is None."""

    ticker: str
    open: float
    high: float
    low: float
    close: float
    volume: float | None
    vwap: float | None
    trades: int | None


class MarketDay(msgspec.Struct, frozen=True, kw_only=True):
    """A day of a market."""

    bars: Sequence[DayBar]
    """By ticker; of every instrument with a bar on that day, one that is switched off too."""
    complete: bool
    """Whether nothing of that day is missing, as far as it is settled, of any instrument that is switched on."""


def day_of(zone: str) -> Span:
    """The days of a zone."""
    return Span(multiplier=1, unit="day", zone=zone)


def dated(zone: str, start: int) -> int:
    """The instant that the provider gives a day that begins at `start`, both Unix ms: where it ends or closes."""
    if zone == "UTC":
        return start + DAY_MS - 1
    return to_ms(datetime.combine(local_date(zone, start), _CLOSE, ZoneInfo(zone)))


async def previous(
    conn: AsyncConnection[Any], terms: Terms, symbol: str, zone: str, *, last_bar: int | None = None
) -> tuple[Head, Bars]:
    """The last day with a bar that is over, and what is known of it; no bar where there was none.

    conn: within a snapshot. last_bar: about where the symbol's bars end, Unix ms, if known. Raises UnknownSymbol.
    """
    span = day_of(zone)
    today = span.floor(to_ms(terms.now))
    look = Look(symbol=symbol, span=span, low=None, high=today, end=today)
    state, found = await collect(conn, look, 1, newest=True, last_bar=last_bar)
    bars = found.take(slice(-1, None))
    start = int(bars.ts[0]) if len(bars) else span.back(today, 1)
    day = Range(from_ms(start), from_ms(span.after(start)))
    return proof.head(state, terms, span, day, more=None), bars


async def market_day(conn: AsyncConnection[Any], terms: Terms, market: Market, start: int) -> MarketDay:
    """The day that begins at `start`, Unix ms, in the market's zone. conn: within a snapshot."""
    span = day_of(market.zone)
    day = Range(from_ms(start), from_ms(span.after(start)))
    query = sql.SQL(_DAY).format(relation=sql.Identifier("market_data", span.stored.table))
    values = {"asset_types": list(market.asset_types), "start": day.start, "end": day.end}
    rows = await (await conn.execute(query, values, binary=True)).fetchall()
    stale = dict(await (await conn.execute(_STALE, {"day": as_range(day)})).fetchall())
    ledgers = [one for one in await ledger.ledgers(conn) if one.asset_type in market.asset_types]
    return MarketDay(
        bars=[DayBar(**dict(zip(DayBar.__struct_fields__, row, strict=True))) for row in rows],
        complete=all(_complete(one, terms, span, day, as_ranges(stale.get(one.symbol))) for one in ledgers),
    )


def _complete(one: Ledger, terms: Terms, span: Span, day: Range, unrefreshed: Ranges) -> bool:
    settled = coverage.settled_to(one, terms.now, terms.settle)
    gaps = coverage.missing(
        one, day, floors=terms.floors, timeframe=span.stored, settled=settled, unrefreshed=unrefreshed
    )
    return one.last_bar is not None and not gaps and day.start < settled


_DAY: LiteralString = """
    SELECT
        i.ticker,
        (array_agg(c.open ORDER BY c.ts))[1],
        max(c.high),
        min(c.low),
        (array_agg(c.close ORDER BY c.ts DESC))[1],
        sum(c.volume),
        CASE WHEN count(*) FILTER (WHERE c.volume > 0 AND c.vwap IS NULL) = 0
            THEN sum(c.vwap * c.volume) / nullif(sum(c.volume), 0) END,
        sum(c.trades)::bigint
    FROM {relation} AS c JOIN market_data.instruments AS i USING (symbol)
    WHERE i.asset_type = ANY(%(asset_types)s) AND c.ts >= %(start)s AND c.ts < %(end)s
    GROUP BY i.ticker
    ORDER BY i.ticker COLLATE "C"
"""
_STALE: LiteralString = """
    SELECT c.symbol, range_agg(c.range)
    FROM market_data.pending_refreshes AS p JOIN market_data.changes AS c ON c.id = p.change_id
    WHERE c.range && %(day)s
    GROUP BY c.symbol
"""
