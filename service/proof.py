"""What an answer says of itself: whether it is complete, what is missing and why, what may still change."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec
import numpy as np
from numpy.typing import NDArray

from service import coverage
from service.bars import from_ms, to_ms
from service.coverage import Missing
from service.ranges import Range, Ranges
from service.spans import Span
from service.timeframes import Timeframe
from service.windows import State


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """As of when, and by which settings, completeness is judged."""

    now: datetime
    """Aware UTC."""
    settle: timedelta
    floors: Mapping[Timeframe, datetime | None]

    def settled(self, state: State) -> datetime:
        """Up to where (exclusive) the provider neither revises nor delays this symbol."""
        return coverage.settled_to(state.ledger, self.now, self.settle)


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an answer besides its candles."""

    symbol: str
    span: Span
    asked: Range
    """The range that completeness is judged for: as asked, or from the first candle on when only a number was asked."""
    complete: bool
    """Nothing of `asked` up to `settled_to` is missing, and something of it is settled."""
    no_data: bool
    """The symbol has no bar at all."""
    settled_to: datetime | None
    """Up to where (exclusive) of `asked` the provider neither revises nor delays; None without any bar."""
    missing: tuple[Missing, ...]
    more: datetime | None
    """Where the next page begins (ascending: its `from`, descending: its `to`); None at the end."""
    state: State
    """What was known of the symbol."""
    depends: Range | None
    """Nothing of the answer changes before a bar in this range does; None where it may change by itself."""


def head(
    state: State, terms: Terms, span: Span, asked: Range, *, more: datetime | None, since: datetime | None = None
) -> Head:
    """Judge a range. since: how far before it the answer looked, where it did."""
    settled, no_data = terms.settled(state), state.no_data
    gaps = coverage.missing(
        state.ledger,
        asked,
        floors=terms.floors,
        timeframe=span.stored,
        settled=settled,
        unrefreshed=state.unrefreshed,
    )
    return Head(
        symbol=state.ledger.symbol,
        span=span,
        asked=asked,
        complete=not no_data and not gaps and asked.start < settled,
        no_data=no_data,
        settled_to=None if no_data else min(settled, asked.end),
        missing=tuple(gaps),
        more=more,
        state=state,
        depends=_depends(state, terms, span, Range(since or asked.start, asked.end), settled),
    )


def _depends(state: State, terms: Terms, span: Span, looked: Range, settled: datetime) -> Range | None:
    """All the bars that the candles of a range are made of, if all of them are there and settled."""
    whole = Range(from_ms(span.floor(to_ms(looked.start))), from_ms(span.ceil(to_ms(looked.end))))
    floor = terms.floors[span.stored]
    if state.no_data or whole.end > settled or (floor is not None and whole.start < floor):
        return None
    return None if doubtful(state, span, whole, settled) else whole


def doubtful(state: State, span: Span, within: Range, settled: datetime) -> Ranges:
    """The parts of a range in which a candle is not final. settled: up to where (exclusive) the symbol is."""
    stale = Ranges() if span.stored is Timeframe.M1 else state.unrefreshed
    if within.end <= settled and not stale and state.ledger.covered.holds(within):
        return Ranges()
    asked = Ranges([within])
    unsettled = Ranges.of(settled, max(settled, within.end))
    return (asked - state.ledger.covered) | (asked & unsettled) | (asked & stale)


def changing(state: State, terms: Terms, span: Span, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each of the candles with these starts (ascending, Unix ms, shape (n,)) is not final."""
    found = np.zeros(len(starts), np.bool_)
    if not len(starts):
        return found
    within = Range(from_ms(int(starts[0])), from_ms(span.after(int(starts[-1]))))
    parts = doubtful(state, span, within, terms.settled(state))
    if not parts:
        return found
    ends = span.ends(starts)
    for part in parts:
        first = np.searchsorted(ends, to_ms(part.start), side="right")
        found[first : np.searchsorted(starts, to_ms(part.end), side="left")] = True
    return found
