"""The last bar of every symbol, and the candle that it is in: for thousands of symbols in a few statements.

The ledger says where each symbol's bars end, so that each is looked up in one place. Symbols that end far apart are
looked up apart.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
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
from service.windows import COLUMNS_PACKED, decoded, instants

TOGETHER = timedelta(days=7)
"""Symbols whose last bars are in the same stretch of this length are looked up in one statement, which opens one chunk,
if they are MANY; all others together in one more."""
MANY = 50
BACK = timedelta(days=7)
"""How far before its noted end a symbol's last bar is looked for if it is not there: the provider may have withdrawn it
and others."""

MOST_LOOKUPS = 16
"""Of ten thousand symbols each takes 1.5 MB."""
_Row = tuple[Any, ...]
"""Some symbols and their rows, each column packed into one value, as the database found them."""
_Stretch = tuple[datetime, int, int]
"""Where it starts, how many last bars are in it, and a version of the ledgers of their symbols."""


class Latest(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Of each symbol one row of a frame, by symbol; one without a bar stands in none."""

    symbols: list[str]
    """Whose the bars are."""
    bars: Frame
    with_candle: list[str]
    """Whose the candles are: a bar's candle may still have to be refreshed."""
    candles: Frame


class Lookups:
    """What was looked up last, to be used again while every symbol's ledger is the row that it was then."""

    def __init__(self) -> None:
        self._found: OrderedDict[Any, tuple[list[_Stretch], list[_Row]]] = OrderedDict()

    def get(self, key: Any, stretches: list[_Stretch]) -> list[_Row] | None:  # noqa: ANN401 - of the question's parts
        """The rows found for it, if these were the stretches."""
        there, found = self._found.get(key, (None, None))
        if there != stretches:
            return None
        self._found.move_to_end(key)
        return found

    def put(self, key: Any, stretches: list[_Stretch], found: list[_Row]) -> None:  # noqa: ANN401 - as above
        """Keep them; of the questions asked last MOST_LOOKUPS."""
        self._found[key] = (stretches, found)
        self._found.move_to_end(key)
        if len(self._found) > MOST_LOOKUPS:
            self._found.popitem(last=False)


async def latest(
    conn: AsyncConnection[Any],
    terms: Terms,
    timeframe: Timeframe,
    *,
    symbols: Sequence[str] | None = None,
    asset_type: AssetType | None = None,
    lookups: Lookups | None = None,
) -> Latest:
    """The last bar of each of these symbols (None: of all), of one asset type if given, and its candle. One snapshot.

    lookups: where what is found is kept for the next time. A symbol that there is not is left out like one without a
    bar.
    """
    chosen = {"symbols": None if symbols is None else list(symbols), "asset_type": asset_type, "besides": []}
    async with snapshot(conn):
        look = _Look(conn, chosen, await _stretches(conn, chosen), Lookups() if lookups is None else lookups)
        names, bars = _frame(await look.rows(Timeframe.M1, terms), Timeframe.M1, terms)
        if timeframe is Timeframe.M1:
            return Latest(symbols=names, bars=bars, with_candle=names, candles=bars)
        found, candles = _frame(await look.rows(timeframe, terms), timeframe, terms)
    return Latest(symbols=names, bars=bars, with_candle=found, candles=candles)


async def _stretches(conn: AsyncConnection[Any], chosen: Mapping[str, Any]) -> list[_Stretch]:
    return await (await conn.execute(_STRETCHES, {**chosen, "together": TOGETHER, "epoch": EPOCH})).fetchall()


class _Look:
    """One look at the ends of the chosen symbols."""

    def __init__(
        self, conn: AsyncConnection[Any], chosen: dict[str, Any], stretches: list[_Stretch], lookups: Lookups
    ) -> None:
        self._conn, self._chosen, self._stretches, self._lookups = conn, chosen, stretches, lookups
        self._count = sum(count for _, count, _ in stretches)

    async def rows(self, timeframe: Timeframe, terms: Terms) -> list[_Row]:
        """The last row of each symbol: where it is said to be, or else before."""
        key = (timeframe, tuple(self._chosen["symbols"] or ()), self._chosen["asset_type"])
        found = self._lookups.get(key, self._stretches)
        if found is None or not _stand(found, terms.floors[timeframe]):
            found = await self._look_up(timeframe, self._chosen, back=timedelta())
            names = [name for row in found for name in _names(row)]
            if len(names) != self._count:
                found += await self._look_up(timeframe, self._chosen | {"besides": names}, back=BACK)
            self._lookups.put(key, self._stretches, found)
        return found

    async def _look_up(self, timeframe: Timeframe, chosen: dict[str, Any], *, back: timedelta) -> list[_Row]:
        """At most so far before where the last bar is said to be; a row for each statement that found any."""
        query = sql.SQL(_LATEST).format(
            relation=sql.Identifier("market_data", timeframe.table),
            tight=sql.SQL("" if timeframe is Timeframe.M1 else _TIGHT),
        )
        found = []
        for start, end, apart in self._statements():
            values = {
                "together": TOGETHER,
                "epoch": EPOCH,
                "start": start,
                "end": end,
                "apart": apart,
                "low": start - timeframe.length - back,
                "back": back,
                "length": timeframe.length,
                "derived": timeframe is not Timeframe.M1,
            }
            row = await (await self._conn.execute(query, chosen | values, binary=True, prepare=True)).fetchone()
            if row is not None and row[0] is not None:
                found.append(row)
        return found

    def _statements(self) -> Iterator[tuple[datetime, datetime, list[datetime]]]:
        """From when to when each statement looks up the last bars, and the starts of stretches that it leaves out."""
        large = [start for start, count, _ in self._stretches if count >= MANY]
        small = [start for start, count, _ in self._stretches if count < MANY]
        for start in large:
            yield start, start + TOGETHER, []
        if small:
            yield small[0], small[-1] + TOGETHER, large


def _names(row: _Row) -> list[str]:
    names: list[str] = row[0].split()
    return names


def _stand(rows: Sequence[_Row], floor: datetime | None) -> bool:
    """Whether retention has taken none of them."""
    return floor is None or all(instants(row[6]).min() >= to_ms(floor) for row in rows)


def _frame(rows: Sequence[_Row], timeframe: Timeframe, terms: Terms) -> tuple[list[str], Frame]:
    """The symbols, ascending, and one row of each, judged as of now."""
    names: list[str] = []
    frames: list[Frame] = []
    for row in rows:
        _, kinds, tickers, last_bar, reached, covered, *packed = row
        bars = decoded(tuple(packed))
        settled = _settled(terms, kinds.split(), tickers.split(), instants(last_bar), instants(reached))
        ends = bars.ts + timeframe.length // timedelta(milliseconds=1)
        names += _names(row)
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
    """Up to where each symbol is settled, Unix ms, as `coverage.settled_to` has it. reached: below 0: nothing is."""
    long_ago = minute_floor(terms.now - EMPTY_TAIL_SETTLES)
    markets = [market_of(kind, ticker) for kind, ticker in zip(kinds, tickers, strict=True)]
    opened = {market: to_ms(last_open(market, long_ago)) for market in set(markets)}
    edge = np.minimum(last_bar + MINUTE_MS, to_ms(minute_floor(terms.now - terms.settle)))
    edge = np.maximum(edge, to_ms(long_ago))
    least = np.array([opened[market] for market in markets], np.int64)
    return np.where(reached < 0, edge, np.maximum(least, np.minimum(edge, reached)))


_CHOSEN: LiteralString = """
    last_bar IS NOT NULL
    AND (%(symbols)s::text[] IS NULL OR symbol = ANY(%(symbols)s))
    AND (%(asset_type)s::text IS NULL OR asset_type = %(asset_type)s)
    AND symbol <> ALL(%(besides)s::text[])
"""
_STRETCHES: LiteralString = f"""
    SELECT
        date_bin(%(together)s, last_bar, %(epoch)s) AS start,
        count(*),
        bit_xor(hashtextextended(symbol || ' ' || sync_state.xmin::text, 0)) AS version
    FROM market_data.sync_state JOIN market_data.instruments USING (symbol)
    WHERE {_CHOSEN}
    GROUP BY start
    ORDER BY start
"""  # noqa: S608 - constants only
# An aggregate reads all that its bounds allow before a LIMIT cuts it. Bars need none: for each symbol these would be
# held against every chunk, which takes longer than to look into the newest ones.
_TIGHT: LiteralString = "AND ts <= s.last_bar AND ts > s.last_bar - %(length)s - %(back)s"
# Neither symbols nor tickers hold a space. What may still change is not looked at further.
_LATEST: LiteralString = f"""
    SELECT
        string_agg(symbol, ' '), string_agg(asset_type, ' '), string_agg(ticker, ' '),
        string_agg(timestamptz_send(last_bar), ''),
        string_agg(timestamptz_send(coalesce(reached, '-infinity')), ''),
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
