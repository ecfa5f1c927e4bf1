"""The stored instruments as the provider lists its tickers: found by its spelling, filtered, sorted, page by page."""

from collections.abc import Sequence
from typing import Any, Literal, LiteralString, get_args

import msgspec
from psycopg import AsyncConnection, sql

from service.instruments import AssetType
from service.provider_calls.markets import MARKETS

Sort = Literal["ticker", "name", "market", "locale"]
SORTS: tuple[Sort, ...] = get_args(Sort)


class StoredTicker(msgspec.Struct, frozen=True, kw_only=True):
    """An instrument, with its place among the provider's markets."""

    symbol: str
    """Our key."""
    ticker: str
    """The provider's spelling."""
    name: str
    asset_type: AssetType
    active: bool
    market: str
    locale: str


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which instruments, in which order; None: whichever. Tickers are compared by their bytes."""

    ticker: str | None = None
    gt: str | None = None
    gte: str | None = None
    lt: str | None = None
    lte: str | None = None
    market: str | None = None
    locale: str | None = None
    asset_type: AssetType | None = None
    active: bool | None = None
    search: str = ""
    """Words, of which each must stand in the ticker or the name, in any case."""
    sort: Sort = "ticker"
    descending: bool = False
    after: tuple[str, str] | None = None
    """The value sorted by and the ticker of the last instrument of the page before."""


async def find(conn: AsyncConnection[Any], ticker: str) -> StoredTicker | None:
    """The instrument of this ticker; None where there is none."""
    if "\x00" in ticker:  # of which the database could not even be asked
        return None
    found = await listed(conn, Filter(ticker=ticker), 1)
    return found[0] if found else None


async def listed(conn: AsyncConnection[Any], wanted: Filter, limit: int) -> list[StoredTicker]:
    """At most so many of the instruments that pass."""
    direction, beyond = ("DESC", "<") if wanted.descending else ("ASC", ">")
    query = sql.SQL(_LIST).format(direction=sql.SQL(direction), beyond=sql.SQL(beyond))
    places = [
        (asset_type, name, market.locale)
        for name, market in MARKETS.items()
        for asset_type in market.asset_types
        if wanted.market in {None, name}
        and wanted.locale in {None, market.locale}
        and wanted.asset_type in {None, asset_type}
    ]
    asset_types, markets, locales = zip(*places, strict=True) if places else ((), (), ())
    key, ticker = wanted.after or (None, None)
    values = {
        "asset_types": list(asset_types),
        "markets": list(markets),
        "locales": list(locales),
        "words": wanted.search.lower().split(),
        "after_key": key,
        "after_ticker": ticker,
        "limit": limit,
        **{name: getattr(wanted, name) for name in ("ticker", "gt", "gte", "lt", "lte", "active", "sort")},
    }
    rows: Sequence[Any] = await (await conn.execute(query, values)).fetchall()
    return [StoredTicker(**dict(zip(StoredTicker.__struct_fields__, row, strict=True))) for row in rows]


_LIST: LiteralString = """
    SELECT i.symbol, i.ticker, i.name, i.asset_type, i.active, m.market, m.locale
    FROM market_data.instruments AS i
    JOIN unnest(%(asset_types)s::text[], %(markets)s::text[], %(locales)s::text[]) AS m (asset_type, market, locale)
        USING (asset_type)
    CROSS JOIN LATERAL (
        SELECT
            i.ticker COLLATE "C" AS ticker,
            CASE %(sort)s::text
                WHEN 'name' THEN i.name WHEN 'market' THEN m.market WHEN 'locale' THEN m.locale ELSE i.ticker
            END COLLATE "C" AS key
    ) AS by
    WHERE (%(ticker)s::text IS NULL OR i.ticker = %(ticker)s)
        AND (%(gt)s::text IS NULL OR by.ticker > %(gt)s)
        AND (%(gte)s::text IS NULL OR by.ticker >= %(gte)s)
        AND (%(lt)s::text IS NULL OR by.ticker < %(lt)s)
        AND (%(lte)s::text IS NULL OR by.ticker <= %(lte)s)
        AND (%(active)s::boolean IS NULL OR i.active = %(active)s)
        AND NOT EXISTS (
            SELECT FROM unnest(%(words)s::text[]) AS word WHERE strpos(lower(i.ticker || ' ' || i.name), word) = 0
        )
        AND (%(after_key)s::text IS NULL OR (by.key, by.ticker) {beyond} (%(after_key)s, %(after_ticker)s::text))
    ORDER BY by.key {direction}, by.ticker {direction}
    LIMIT %(limit)s
"""
