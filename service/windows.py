"""Reads one window of time of a symbol: its candles as columns, its ledger and its last change, in one statement.

One statement is one snapshot. The database packs each column into one value (eight bytes a row, big-endian), so that a
window costs the client a few array operations, whatever its length.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, LiteralString

import msgspec
import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection, sql

from service.bars import Bars, from_ms, to_ms
from service.coverage import Ledger
from service.db.connect import as_range, as_ranges
from service.ledger import COLUMNS, FROM, from_row, unknown
from service.ranges import Range, Ranges
from service.timeframes import AGGREGATED, Timeframe

_POSTGRES_EPOCH_MS = 946_684_800_000
"""2000-01-01, from which PostgreSQL counts its microseconds."""


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """Which state of a symbol in a database was read: the one after its last change."""

    installed_at: datetime
    """Tells the database from another one."""
    change: int
    """Id of that change; 0 before the first."""
    changed_at: datetime | None
    """When it was written: tells it from one of the same id in a database restored from a backup."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a window's snapshot says of the symbol besides its candles."""

    ledger: Ledger
    unrefreshed: Ranges
    """Stored bars that the aggregates do not show yet."""
    source: str | None
    revision: Revision
    version: int
    """Of all of it but the watermarks: another one as soon as anything of it changes."""
    watermarks: Mapping[Timeframe, int]
    """Up to where (exclusive, Unix ms) an aggregate was materialised then; without one whose relation is stored whole.
    """

    @property
    def no_data(self) -> bool:
        """The symbol has no bar at all."""
        return self.ledger.last_bar is None


async def window(
    conn: AsyncConnection[Any],
    symbol: str,
    stored: Timeframe,
    low: int,
    high: int,
    *,
    limit: int | None = None,
    newest: bool = False,
    known: State | None = None,
) -> tuple[State, Bars]:
    """The candles of a stored timeframe that start in `[low, high)`, Unix ms, ascending; at most the first `limit`.

    newest: at most the last `limit` instead. known: the state that was read last; where it still is the state, that
    alone is asked, at a third of the cost. Raises UnknownSymbol with the nearest names.
    """
    below = known is not None and high <= known.watermarks.get(stored, -1)
    query = _window(stored, newest=newest, known=known is not None, materialized=below)
    values = {"symbol": symbol, "start": from_ms(low), "end": from_ms(high), "limit": limit}
    row = await (await conn.execute(query, values, binary=True, prepare=True)).fetchone()
    if row is None:
        raise await unknown(conn, symbol)
    if known is not None and row[:2] != (below, known.version):
        return await window(conn, symbol, stored, low, high, limit=limit, newest=newest)
    bars = decoded(row[-8:])
    return known or _state(row[:-8]), bars.take(slice(None, None, -1)) if newest else bars


async def version(conn: AsyncConnection[Any], symbol: str) -> int | None:
    """Of the symbol's state as it is now; None: there is no such symbol."""
    row = await (await conn.execute(_VERSION, {"symbol": symbol}, binary=True, prepare=True)).fetchone()
    return row[0] if row else None


async def starts(
    conn: AsyncConnection[Any], symbol: str, stored: Timeframe, low: int, high: int, *, limit: int, newest: bool = False
) -> NDArray[np.int64]:
    """The starts alone of such candles, Unix ms, ascending: read from the index."""
    query = sql.SQL(_STARTS).format(
        relation=sql.Identifier("market_data", stored.table), direction=sql.SQL("DESC" if newest else "ASC")
    )
    values = {"symbol": symbol, "start": from_ms(low), "end": from_ms(high), "limit": limit}
    row = await (await conn.execute(query, values, binary=True, prepare=True)).fetchone()
    found = instants(row[0] if row and row[0] else b"")
    return found[::-1] if newest else found


async def unchanged(conn: AsyncConnection[Any], since: Revision, depends: Mapping[str, Range]) -> bool:
    """Whether no bar has changed since a revision of this very database, in a range for each of some symbols."""
    values = {
        "installed_at": since.installed_at,
        "change": since.change,
        "changed_at": since.changed_at,
        "symbols": list(depends),
        "ranges": [as_range(one) for one in depends.values()],
    }
    return await (await conn.execute(_UNCHANGED, values)).fetchone() == (True,)


def decoded(packed: tuple[bytes | None, ...]) -> Bars:
    """The columns of `COLUMNS_PACKED`, in its order."""
    ts, *prices = (b"" if column is None else column for column in packed)
    volumes, trades = prices[:-1], prices[-1]
    names = ("open", "high", "low", "close", "volume", "vwap")
    floats: dict[str, NDArray[np.float64]] = {
        name: np.frombuffer(column, ">f8").astype(np.float64) for name, column in zip(names, volumes, strict=True)
    }
    return Bars(
        ts=instants(ts),
        trades=np.frombuffer(trades, ">i8").astype(np.int64),
        **floats,
    )


def instants(packed: bytes) -> NDArray[np.int64]:
    """Packed instants as Unix ms; minus infinity lies far below 0."""
    found: NDArray[np.int64] = np.frombuffer(packed, ">i8").astype(np.int64) // 1000 + _POSTGRES_EPOCH_MS
    return found


@cache
def _window(stored: Timeframe, *, newest: bool, known: bool, materialized: bool) -> bytes:
    """The statement for a window. materialized: what lies below the watermark, which the statement looks at again."""
    relation = f"{stored.table}_materialized" if materialized else stored.table
    below = sql.SQL("market_data.{}() >= %(end)s").format(sql.Identifier(f"{stored.table}_watermark"))
    query = sql.SQL(_WINDOW).format(
        state=sql.SQL(_VERSION if known else _STATE),
        below=below if materialized else sql.SQL("false"),
        relation=sql.Identifier("market_data", relation),
        direction=sql.SQL("DESC" if newest else "ASC"),
    )
    return query.as_bytes(None)


def _state(row: tuple[Any, ...]) -> State:
    _, version, *known, unrefreshed, source, installed_at, change, changed_at = row[: -len(AGGREGATED)]
    marks = zip(AGGREGATED, row[-len(AGGREGATED) :], strict=True)
    return State(
        ledger=from_row(known),
        unrefreshed=as_ranges(unrefreshed),
        source=source,
        revision=Revision(installed_at=installed_at, change=change, changed_at=changed_at),
        version=version,
        watermarks={timeframe: to_ms(mark) for timeframe, mark in marks if mark is not None},
    )


# A column that is absent is packed as NaN, a number of trades as -1: every value then has eight bytes.
COLUMNS_PACKED: LiteralString = """
    string_agg(timestamptz_send(ts), ''),
    string_agg(float8send(open), ''), string_agg(float8send(high), ''),
    string_agg(float8send(low), ''), string_agg(float8send(close), ''),
    string_agg(float8send(coalesce(volume, 'NaN')), ''), string_agg(float8send(coalesce(vwap, 'NaN')), ''),
    string_agg(int8send(coalesce(trades, -1)), '')
"""
# The transaction that wrote the ledger's row: whatever changes the state of a symbol writes that row anew.
_VERSION: LiteralString = """
    SELECT xmin::text::bigint AS version FROM market_data.sync_state WHERE symbol = %(symbol)s
"""
_STATE: LiteralString = f"""
    SELECT
        sync_state.xmin::text::bigint AS version,
        {COLUMNS},
        (
            SELECT range_agg(c.range)
            FROM market_data.pending_refreshes AS p JOIN market_data.changes AS c ON c.id = p.change_id
            WHERE c.symbol = sync_state.symbol
        ) AS unrefreshed,
        installation.source AS installed_source,
        installation.created_at AS installed_at,
        coalesce(last.id, 0) AS change,
        last.at AS changed_at,
        {", ".join(f"nullif(market_data.{one.table}_watermark(), 'infinity') AS {one.table}" for one in AGGREGATED)}
    {FROM}
    CROSS JOIN market_data.installation
    LEFT JOIN LATERAL (
        SELECT c.id, c.at FROM market_data.changes AS c WHERE c.symbol = sync_state.symbol ORDER BY c.id DESC LIMIT 1
    ) AS last ON true
    WHERE symbol = %(symbol)s
"""  # noqa: S608 - constants only
_WINDOW: LiteralString = f"""
    SELECT {{below}} AS below, state.*, packed.*
    FROM ({{state}}) AS state
    CROSS JOIN (
        SELECT {COLUMNS_PACKED}
        FROM (
            SELECT ts, open, high, low, close, volume, vwap, trades
            FROM {{relation}}
            WHERE symbol = %(symbol)s AND ts >= %(start)s AND ts < %(end)s
            ORDER BY ts {{direction}}
            LIMIT %(limit)s
        ) AS page
    ) AS packed
"""  # noqa: S608 - constants only
_STARTS: LiteralString = """
    SELECT string_agg(timestamptz_send(ts), '')
    FROM (
        SELECT ts FROM {relation}
        WHERE symbol = %(symbol)s AND ts >= %(start)s AND ts < %(end)s
        ORDER BY ts {direction}
        LIMIT %(limit)s
    ) AS page
"""
_UNCHANGED: LiteralString = """
    SELECT
        EXISTS (SELECT FROM market_data.installation WHERE created_at = %(installed_at)s)
        AND (
            %(change)s = 0
            OR EXISTS (SELECT FROM market_data.changes WHERE id = %(change)s AND at = %(changed_at)s)
        )
        AND NOT EXISTS (
            SELECT FROM unnest(%(symbols)s::text[], %(ranges)s::tstzrange[]) AS d (symbol, depends)
            JOIN market_data.changes AS c ON c.symbol = d.symbol AND c.id > %(change)s AND c.range && d.depends
        )
"""
