"""Where candles are looked for: windows from one end of a range on, until there are enough.

A LIMIT alone would make a real-time aggregate read the whole history, so every window is bounded on both sides.
"""

from datetime import timedelta
from typing import Any

import msgspec
from psycopg import AsyncConnection

from service import windows
from service.aggregate import aggregate
from service.bars import Bars, join, to_ms
from service.spans import Span
from service.windows import State

READ_AHEAD = 1.25
"""The first window for N candles spans this many times N of them."""
MOST_ROWS = 65_536
"""Stored rows that a window spans at first, at most (unless one candle spans more)."""
MOST_GROWN_ROWS = 4 * MOST_ROWS
"""Each further window is twice as long, up to so many stored rows: there were few bars before it."""


class Moved(Exception):
    """Bars changed between two windows of what must be one picture."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """Which candles: those that start in `[low, high)`, Unix ms, both at a candle's start."""

    symbol: str
    span: Span
    low: int | None
    """None: wherever the bars begin."""
    high: int
    end: int | None = None
    """Where the range that was asked for ends within its last candle, if it does: a real-time aggregate is the cheaper
    the earlier a read ends."""

    known: State | None = None
    """What was known of the symbol when it was read last."""

    async def read(
        self, conn: AsyncConnection[Any], low: int, high: int, *, limit: int | None = None, newest: bool = False
    ) -> tuple[State, Bars]:
        """One window of candles, ascending. limit: more are not needed, from the newest or the oldest on."""
        if self.span.native:
            high = high if self.end is None else max(low, min(high, self.end))
        else:
            limit = None
        state, bars = await windows.window(
            conn, self.symbol, self.span.stored, low, high, limit=limit, newest=newest, known=self.known
        )
        return state, bars if self.span.native else aggregate(bars, self.span.starts(bars.ts))

    def within(self, state: State) -> tuple[int, int]:
        """The range, cut to where the symbol has bars; an empty one, `high` to `high`, where it has none."""
        known = state.ledger
        if known.first_bar is None or known.last_bar is None:
            return self.high, self.high
        low = self.span.floor(to_ms(known.first_bar))
        high = min(self.high, self.span.after(to_ms(known.last_bar)))
        return min(low if self.low is None else max(low, self.low), high), high

    def forward(self, low: int, count: int) -> int:
        """The start of the candle `count` after the one that starts at `low`, or `high` if that comes first."""
        count = min(count, self._most(low))
        while count > 0 and low < self.high:
            low = self.span.forward(low, min(count, MOST_ROWS))
            count -= MOST_ROWS
        return min(low, self.high)

    def back(self, low: int, count: int) -> int:
        """The start of the candle `count` before `high`; maybe a later one that lies before `low`, if that does."""
        return self.span.back(self.high, min(count, self._most(low)))

    def _most(self, low: int) -> int:
        """More candles than lie between `low` and `high`: none of them is half as long as they are by convention."""
        return 2 * (self.high - low) // (self.span.nominal // timedelta(milliseconds=1)) + 2

    def step(self, candles: float, rows: int) -> int:
        """How long, in ms, a window of so many candles or stored rows is, whichever is less; at least one candle."""
        length, stored = (one // timedelta(milliseconds=1) for one in (self.span.nominal, self.span.stored.length))
        return max(length, min(int(candles * length), rows * stored))

    def above(self, low: int, step: int) -> int:
        """The end of a window from `low` on."""
        return min(self.span.ceil(low + step), self.high)

    def below(self, high: int, step: int, bottom: int) -> int:
        """The start of a window that ends at `high`."""
        return max(self.span.floor(high - step), bottom)


async def collect(
    conn: AsyncConnection[Any], look: Look, limit: int, *, newest: bool, last_bar: int | None = None
) -> tuple[State, Bars]:
    """The oldest or newest `limit` candles or a few more, ascending, and what is known as of the first window.

    last_bar: about where the bars end, Unix ms, if known. Raises Moved unless all windows saw the same bars, and
    UnknownSymbol.
    """
    step = look.step(READ_AHEAD * limit, MOST_ROWS)
    longest = max(step, look.step(limit * 1e6, MOST_GROWN_ROWS))
    low, high = _first(look, step, newest=newest, last_bar=last_bar)
    state, bars = await look.read(conn, low, high, limit=limit, newest=newest)
    look = msgspec.structs.replace(look, known=state)
    parts, count = [bars], len(bars)
    bottom, top = look.within(state)
    while count < limit:
        if newest:
            high = min(low, top)
            low = look.below(high, step, bottom)
        else:
            low = max(high, bottom)
            high = min(look.above(low, step), top)
        if low >= high:
            break
        again, bars = await look.read(conn, low, high, limit=limit - count, newest=newest)
        if again.revision != state.revision:
            raise Moved
        parts.append(bars)
        count += len(bars)
        step = min(2 * step, longest)
    return state, join(parts[::-1] if newest else parts)


def _first(look: Look, step: int, *, newest: bool, last_bar: int | None) -> tuple[int, int]:
    """The first window, before anything is known of the symbol; an empty one where nothing can be guessed."""
    if not newest and look.low is not None:
        return look.low, max(look.low, look.above(look.low, step))
    if last_bar is None:
        return look.high, look.high
    # Bars may have come since: the window reaches up to the end, and down to where it would have reached then.
    low = look.below(min(look.high, look.span.after(last_bar)), step, 0)
    if look.low is not None:
        low = min(max(low, look.low), look.high)
    return (low, look.high) if look.high - low <= 4 * step else (look.high, look.high)
