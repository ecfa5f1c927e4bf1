"""The last bar of every symbol, and the candle that it is in: for thousands of symbols in a few statements.

The ledger says where each symbol's bars end, so that each is looked up in one place. Symbols that end far apart are
looked up apart.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, LiteralString

import msgspec
import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection, sql

from service.bars import MINUTE_MS, join, to_ms
from service.coverage import EMPTY_TAIL_SETTLES, minute_floor
from service.frames import Frame
from service.instruments import AssetType
from service.market_hours import last_open, market_of
from service.proof import Terms
from service.query import snapshot
from service.timeframes import EPOCH, Timeframe
from service.windows import COLUMNS_PACKED, decoded

TOGETHER = timedelta(days=7)
"""Symbols whose last bars are in the same stretch of this length are looked up in one statement, which opens one chunk,
if they are MANY; all others together in one more."""
MANY = 50
BACK = timedelta(days=7)
"""How far before its noted end a symbol's last bar is looked for if it is not there: the provider may have withdrawn it
and others."""


class Latest(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Of each symbol one row of a frame, by symbol; one without a bar stands in none."""

    symbols: list[str]
    """Whose the bars are."""
    bars: Frame
    with_candle: list[str]
    """Whose the candles are: a bar's candle may still have to be refreshed."""
    candles: Frame


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
    chosen = {"symbols": None if symbols is None else list(symbols), "asset_type": asset_type, "besides": []}
    async with snapshot(conn):
        stretches = await _stretches(conn, chosen)
        names, bars = await _last(conn, terms, Timeframe.M1, stretches, chosen)
        if timeframe is Timeframe.M1:
            return Latest(symbols=names, bars=bars, with_candle=names, candles=bars)
        found, candles = await _last(conn, terms, timeframe, stretches, chosen)
    return Latest(symbols=names, bars=bars, with_candle=found, candles=candles)


async def _stretches(conn: AsyncConnection[Any], chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """From when to when which of the last bars are, as one statement each is to look them up."""
    rows = await (await conn.execute(_STRETCHES, chosen | {"together": TOGETHER, "epoch": EPOCH})).fetchall()
    large = [start for start, count in rows if count >= MANY]
    small = [start for start, count in rows if count < MANY]
    shared = {"together": TOGETHER, "epoch": EPOCH}
    found = [shared | {"start": start, "end": start + TOGETHER, "apart": []} for start in large]
    if small:
        found.append(shared | {"start": small[0], "end": small[-1] + TOGETHER, "apart": large})
    return found


async def _last(
    conn: AsyncConnection[Any],
    terms: Terms,
    timeframe: Timeframe,
    stretches: Sequence[dict[str, Any]],
    chosen: dict[str, Any],
) -> tuple[list[str], Frame]:
    """The last row of each symbol: where it is said to be, or else before."""
    names, frame = await _rows(conn, terms, timeframe, stretches, chosen, back=timedelta())
    expected = await (await conn.execute(_COUNT, chosen)).fetchone()
    if expected is None or len(names) == expected[0]:
        return names, frame
    others = chosen | {"besides": names}
    more, earlier = await _rows(conn, terms, timeframe, stretches, others, back=BACK)
    return _merged(names + more, [frame, earlier])


async def _rows(
    conn: AsyncConnection[Any],
    terms: Terms,
    timeframe: Timeframe,
    stretches: Sequence[dict[str, Any]],
    chosen: dict[str, Any],
    *,
    back: timedelta,
) -> tuple[list[str], Frame]:
    """The symbols that have such a row, ascending, and the latest one of each; at most so far back."""
    names: list[str] = []
    frames: list[Frame] = []
    query = sql.SQL(_LATEST).format(
        relation=sql.Identifier("market_data", timeframe.table),
        tight=sql.SQL("" if timeframe is Timeframe.M1 else _TIGHT),
    )
    for stretch in stretches:
        values = stretch | {
            "low": stretch["start"] - timeframe.length - back,
            "back": back,
            "length": timeframe.length,
            "derived": timeframe is not Timeframe.M1,
        }
        row = await (await conn.execute(query, chosen | values, binary=True, prepare=True)).fetchone()
        if row is None or row[0] is None:
            continue
        symbols, kinds, tickers, last_bar, reached, covered, *packed = row
        bars = decoded(tuple(packed))
        settled = _settled(terms, kinds.split(), tickers.split(), _instants(last_bar), _instants(reached))
        ends = bars.ts + timeframe.length // timedelta(milliseconds=1)
        names += symbols.split()
        frames.append(Frame(candles=bars, changing=(np.frombuffer(covered, np.uint8) == 0) | (ends > settled)))
    return _merged(names, frames)


def _merged(names: Sequence[str], frames: Sequence[Frame]) -> tuple[list[str], Frame]:
    """By symbol."""
    order = np.argsort(np.array(names, np.object_), kind="stable")
    changing = np.concatenate([np.empty(0, np.bool_), *(frame.changing for frame in frames)])
    frame = Frame(candles=join([frame.candles for frame in frames]), changing=changing)
    return [names[place] for place in order.tolist()], frame.part(order)


def _settled(
    terms: Terms, kinds: Sequence[Any], tickers: Sequence[str], last_bar: NDArray[np.int64], reached: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Up to where each symbol is settled, Unix ms, as `coverage.settled_to` has it. reached: -1 where nothing is."""
    long_ago = minute_floor(terms.now - EMPTY_TAIL_SETTLES)
    markets = [market_of(kind, ticker) for kind, ticker in zip(kinds, tickers, strict=True)]
    opened = {market: to_ms(last_open(market, long_ago)) for market in set(markets)}
    edge = np.minimum(last_bar + MINUTE_MS, to_ms(minute_floor(terms.now - terms.settle)))
    edge = np.maximum(edge, to_ms(long_ago))
    least = np.array([opened[market] for market in markets], np.int64)
    return np.where(reached < 0, edge, np.maximum(least, np.minimum(edge, reached)))


def _instants(packed: bytes) -> NDArray[np.int64]:
    return np.frombuffer(packed, ">i8").astype(np.int64)


_CHOSEN: LiteralString = """
    last_bar IS NOT NULL
    AND (%(symbols)s::text[] IS NULL OR symbol = ANY(%(symbols)s))
    AND (%(asset_type)s::text IS NULL OR asset_type = %(asset_type)s)
    AND symbol <> ALL(%(besides)s::text[])
"""
_STRETCHES: LiteralString = f"""
    SELECT date_bin(%(together)s, last_bar, %(epoch)s) AS start, count(*)
    FROM market_data.sync_state JOIN market_data.instruments USING (symbol)
    WHERE {_CHOSEN}
    GROUP BY start
    ORDER BY start
"""  # noqa: S608 - constants only
_COUNT: LiteralString = f"""
    SELECT count(*) FROM market_data.sync_state JOIN market_data.instruments USING (symbol) WHERE {_CHOSEN}
"""  # noqa: S608 - as above
# An aggregate reads all that its bounds allow before a LIMIT cuts it. Bars need none: for each symbol these would be
# held against every chunk, which takes longer than to look into the newest ones.
_TIGHT: LiteralString = "AND ts <= s.last_bar AND ts > s.last_bar - %(length)s - %(back)s"
# Neither symbols nor tickers hold a space. What may still change is not looked at further.
_LATEST: LiteralString = f"""
    SELECT
        string_agg(symbol, ' '), string_agg(asset_type, ' '), string_agg(ticker, ' '),
        string_agg(int8send((extract(epoch FROM last_bar) * 1000)::bigint), ''),
        string_agg(int8send(coalesce((extract(epoch FROM reached) * 1000)::bigint, -1)), ''),
        string_agg(CASE WHEN whole THEN '\\x01'::bytea ELSE '\\x00' END, ''),
        {COLUMNS_PACKED}
    FROM (
        SELECT
            s.symbol, s.asset_type, s.ticker, s.last_bar, upper(s.covered) AS reached, c.*,
            s.covered @> tstzrange(c.ts, c.ts + %(length)s) AND NOT (
                %(derived)s AND c.ts + %(length)s <= upper(s.covered) AND EXISTS (
                    SELECT FROM market_data.pending_refreshes AS p JOIN market_data.changes AS h ON h.id = p.change_id
                    WHERE h.symbol = s.symbol AND h.range && tstzrange(c.ts, c.ts + %(length)s)
                )
            ) AS whole
        FROM (
            SELECT symbol, asset_type, ticker, last_bar, covered
            FROM market_data.sync_state JOIN market_data.instruments USING (symbol)
            WHERE {_CHOSEN} AND last_bar >= %(start)s AND last_bar < %(end)s
                AND date_bin(%(together)s, last_bar, %(epoch)s) <> ALL(%(apart)s::timestamptz[])
        ) AS s
        CROSS JOIN LATERAL (
            SELECT ts, open, high, low, close, volume, vwap, trades
            FROM {{relation}}
            WHERE symbol = s.symbol AND ts > %(low)s AND ts < %(end)s {{tight}}
            ORDER BY ts DESC
            LIMIT 1
        ) AS c
    ) AS found
"""  # noqa: S608 - as above
