"""The last bar of every symbol, and the candle that it is in: for thousands of symbols in a few statements.

The ledger says where each symbol's bars end, so that each is looked up in one place. Symbols that end far apart are
looked up apart: a statement then opens few chunks.
"""

from collections.abc import Iterator, Sequence
from typing import Any, LiteralString

import msgspec
import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection, sql

from service.bars import MINUTE_MS, Bars, from_ms, join, to_ms
from service.coverage import EMPTY_TAIL_SETTLES, minute_floor
from service.frames import Frame
from service.instruments import AssetType
from service.market_hours import last_open, market_of
from service.proof import Terms
from service.query import snapshot
from service.timeframes import Timeframe
from service.windows import COLUMNS_PACKED, decoded

TOGETHER_MS = 28 * 86_400_000
"""Symbols whose last bars are no further apart are looked up in one statement."""
BACK_MS = 7 * 86_400_000
"""How far before its noted end a symbol's last bar is looked for: the provider may have withdrawn some."""


class Latest(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Of each symbol one row of a frame, by symbol; one without a bar stands in none."""

    symbols: list[str]
    """The symbol of each row, of both frames."""
    bars: Frame
    candles: Frame


class _Ends(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the ledger says of the ends of symbols. Instants are Unix ms, all arrays have the shape (n,)."""

    symbols: NDArray[np.object_]
    last_bar: NDArray[np.int64]
    settled: NDArray[np.int64]

    def __getitem__(self, which: NDArray[Any]) -> "_Ends":
        return _Ends(symbols=self.symbols[which], last_bar=self.last_bar[which], settled=self.settled[which])


async def latest(
    conn: AsyncConnection[Any],
    terms: Terms,
    timeframe: Timeframe,
    *,
    symbols: Sequence[str] | None = None,
    asset_type: AssetType | None = None,
) -> Latest:
    """The last bar of each of these symbols (None: of all), of one asset type if given, and its candle. One snapshot.

    A symbol that there is not is left out like one without a bar.
    """
    async with snapshot(conn):
        ends = await _ends(conn, terms, symbols, asset_type)
        bars, found = await _rows(conn, Timeframe.M1, ends)
        if timeframe is Timeframe.M1:
            return Latest(symbols=ends.symbols[found].tolist(), bars=bars, candles=bars)
        ends = ends[found]
        ends = msgspec.structs.replace(ends, last_bar=bars.candles.ts)
        candles, found = await _rows(conn, timeframe, ends)
    return Latest(symbols=ends.symbols[found].tolist(), bars=_taken(bars, found), candles=candles)


async def _ends(
    conn: AsyncConnection[Any], terms: Terms, symbols: Sequence[str] | None, asset_type: AssetType | None
) -> _Ends:
    values = {"symbols": None if symbols is None else list(symbols), "asset_type": asset_type}
    rows = await (await conn.execute(_ENDS, values, binary=True, prepare=True)).fetchall()
    long_ago = minute_floor(terms.now - EMPTY_TAIL_SETTLES)
    opened: dict[str, int] = {}
    for _, ticker, kind, _, _ in rows:
        market = market_of(kind, ticker)
        if market not in opened:
            opened[market] = to_ms(last_open(market, long_ago))
    last_bar = np.array([row[3] for row in rows], np.int64)
    # As coverage.settled_to has it.
    edge = np.minimum(last_bar + MINUTE_MS, to_ms(minute_floor(terms.now - terms.settle)))
    edge = np.maximum(edge, to_ms(long_ago))
    reached = np.array([edge[place] if row[4] is None else row[4] for place, row in enumerate(rows)], np.int64)
    least = np.array([opened[market_of(kind, ticker)] for _, ticker, kind, _, _ in rows], np.int64)
    return _Ends(
        symbols=np.array([row[0] for row in rows], np.object_),
        last_bar=last_bar,
        settled=np.maximum(least, np.minimum(edge, reached)),
    )


async def _rows(conn: AsyncConnection[Any], timeframe: Timeframe, ends: _Ends) -> tuple[Frame, NDArray[np.int64]]:
    """The latest row of each symbol that has one, and the places of these symbols, ascending."""
    parts, places, final = [], [np.empty(0, np.int64)], [np.empty(0, np.bool_)]
    for group in _groups(ends.last_bar):
        bars, place, done = await _group(conn, timeframe, ends[group])
        parts.append(bars)
        places.append(group[place])
        final.append(done)
    found = np.concatenate(places)
    order = np.argsort(found)
    frame = Frame(candles=join(parts), changing=~np.concatenate(final))
    return _taken(frame, order), found[order]


async def _group(
    conn: AsyncConnection[Any], timeframe: Timeframe, ends: _Ends
) -> tuple[Bars, NDArray[np.int64], NDArray[np.bool_]]:
    length = to_ms(timeframe.length + from_ms(0))
    until = ends.last_bar // length * length + length
    since = until - (BACK_MS if timeframe is Timeframe.M1 else length)
    query = sql.SQL(_LATEST).format(relation=sql.Identifier("market_data", timeframe.table))
    values = {
        "symbols": ends.symbols.tolist(),
        "since": [from_ms(ms) for ms in since.tolist()],
        "until": [from_ms(ms) for ms in until.tolist()],
        "settled": [from_ms(ms) for ms in ends.settled.tolist()],
        "low": from_ms(int(since.min())),
        "high": from_ms(int(until.max())),
        "length": timeframe.length,
        "derived": timeframe is not Timeframe.M1,
    }
    row = await (await conn.execute(query, values, binary=True, prepare=True)).fetchone()
    place, final, *packed = row or (b"",) * 10
    return (
        decoded(tuple(packed)),
        np.frombuffer(place or b"", ">i8").astype(np.int64) - 1,
        np.frombuffer(final or b"", np.bool_),
    )


def _groups(last_bar: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The places of symbols that end at about the same time, together."""
    span = last_bar // TOGETHER_MS
    for one in np.unique(span):
        yield np.flatnonzero(span == one)


def _taken(frame: Frame, which: NDArray[np.int64]) -> Frame:
    return Frame(candles=frame.candles.take(which), changing=frame.changing[which])


_ENDS: LiteralString = """
    SELECT
        symbol, ticker, asset_type,
        (extract(epoch FROM last_bar) * 1000)::bigint, (extract(epoch FROM upper(covered)) * 1000)::bigint
    FROM market_data.sync_state JOIN market_data.instruments USING (symbol)
    WHERE last_bar IS NOT NULL
        AND (%(symbols)s::text[] IS NULL OR symbol = ANY(%(symbols)s))
        AND (%(asset_type)s::text IS NULL OR asset_type = %(asset_type)s)
    ORDER BY symbol
"""
# In the order of place, which counts from 1. What may still change is not looked at further.
_LATEST: LiteralString = f"""
    SELECT string_agg(int8send(place), ''), string_agg(CASE WHEN final THEN '\\x01'::bytea ELSE '\\x00' END, ''),
        {COLUMNS_PACKED}
    FROM (
        SELECT
            a.place,
            c.*,
            c.ts + %(length)s <= a.settled AND s.covered @> tstzrange(c.ts, c.ts + %(length)s) AND NOT (
                %(derived)s AND EXISTS (
                    SELECT FROM market_data.pending_refreshes AS p JOIN market_data.changes AS h ON h.id = p.change_id
                    WHERE h.symbol = a.symbol AND h.range && tstzrange(c.ts, c.ts + %(length)s)
                )
            ) AS final
        FROM unnest(
            %(symbols)s::text[], %(since)s::timestamptz[], %(until)s::timestamptz[], %(settled)s::timestamptz[]
        ) WITH ORDINALITY AS a (symbol, since, until, settled, place)
        JOIN market_data.sync_state AS s ON s.symbol = a.symbol
        CROSS JOIN LATERAL (
            SELECT ts, open, high, low, close, volume, vwap, trades
            FROM {{relation}}
            WHERE symbol = a.symbol AND ts >= a.since AND ts < a.until AND ts >= %(low)s AND ts < %(high)s
            ORDER BY ts DESC
            LIMIT 1
        ) AS c
        ORDER BY a.place
    ) AS found
"""  # noqa: S608 - constants only
