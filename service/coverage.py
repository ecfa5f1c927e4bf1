"""What the ledger's words mean in instants: settled edge, floor, missing, and the pieces of work that follow."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import msgspec

from service.instruments import AssetType
from service.market_hours import last_open, market_of
from service.ranges import Range, Ranges
from service.timeframes import EPOCH, Timeframe

GRID = timedelta(days=28)
"""Slices start at multiples of this from 1970-01-01: 40,320 minutes, one page of the provider."""
EMPTY_TAIL_SETTLES = timedelta(hours=36)
"""How long the minutes after a symbol's last bar may still fill: a free plan delivers at the end of the day."""
MINUTE = timedelta(minutes=1)
Retention = Mapping[Timeframe, timedelta | None]
"""How long each timeframe is kept; None: for ever."""


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one symbol's coverage."""

    symbol: str
    ticker: str
    asset_type: AssetType
    wanted: Ranges
    """Asked for, ever."""
    covered: Ranges
    """Fetched and settled."""
    unavailable: Ranges
    """The provider has no usable bar there; never within `covered`, and not asked for again."""
    first_bar: datetime | None
    last_bar: datetime | None

    def work(self, within: Ranges) -> Ranges:
        """What of `within` is asked for and still to fetch."""
        return (self.wanted & within) - self.covered - self.unavailable


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """A range that a reader asked for and does not get, and why."""

    range: Range
    reason: str
    """pending, never requested, unavailable or expired."""


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """The unit of work: one symbol in one slice of the grid; stored all or nothing."""

    symbol: str
    ticker: str
    range: Range


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """All pieces within one step of the grid; the aggregates are refreshed once for it."""

    start: datetime
    pieces: tuple[Piece, ...]


def settled_edge(now: datetime, last_bar: datetime | None, settle: timedelta) -> datetime:
    """Up to where (exclusive) the provider neither revises nor delays.

    last_bar: start of the latest bar received, None if there is none. The minutes after it count as settled only
    after `EMPTY_TAIL_SETTLES`, since an empty answer there can mean "not delivered yet".
    """
    long_ago = minute_floor(now - EMPTY_TAIL_SETTLES)
    if last_bar is None:
        return long_ago
    return max(long_ago, min(minute_floor(now - settle), last_bar + MINUTE))


def settled_to(ledger: Ledger, now: datetime, settle: timedelta) -> datetime:
    """Up to where (exclusive) a reader may take what is stored as settled.

    That is the settled edge, but no further than the ledger reaches: otherwise the minutes between two syncs would
    make every answer up to now incomplete, and a week-end every answer of a market that is closed. A ledger that
    stopped growing shows when open time of more than `EMPTY_TAIL_SETTLES` ago is lacking.
    """
    edge = settled_edge(now, ledger.last_bar, settle)
    reached = ledger.covered.end
    if reached is None:
        return edge
    market = market_of(ledger.asset_type, ledger.ticker)
    return max(last_open(market, minute_floor(now - EMPTY_TAIL_SETTLES)), min(edge, reached))


def floor(now: datetime, retention: timedelta | None) -> datetime | None:
    """First UTC midnight at or after `now - retention`; None where everything is kept."""
    return None if retention is None else Timeframe.D1.ceil(now - retention)


def minute_floor(at: datetime) -> datetime:
    """Start of the minute that holds `at`."""
    return Timeframe.M1.floor(at)


def plan(ledgers: Iterable[Ledger], within: Ranges) -> list[Slice]:
    """The missing work within the given set: slices of the grid, newest first, in each all symbols as given."""
    return cut((ledger.symbol, ledger.ticker, ledger.work(within)) for ledger in ledgers)


def cut(work: Iterable[tuple[str, str, Ranges]]) -> list[Slice]:
    """Work by symbol and ticker as slices of the grid, newest first, in each all symbols as given."""
    slices: dict[datetime, list[Piece]] = {}
    for symbol, ticker, parts in work:
        for part in parts:
            for span in _cut(part):
                start = EPOCH + (span.start - EPOCH) // GRID * GRID
                slices.setdefault(start, []).append(Piece(symbol=symbol, ticker=ticker, range=span))
    return [Slice(start=start, pieces=tuple(slices[start])) for start in sorted(slices, reverse=True)]


def missing(
    ledger: Ledger,
    asked: Range,
    *,
    floors: Mapping[Timeframe, datetime | None],
    timeframe: Timeframe,
    settled: datetime,
    unrefreshed: Ranges,
) -> list[Missing]:
    """What of the asked range a reader of this timeframe does not get, in time order, each piece with its reason.

    floors: below a timeframe's own floor its candles are gone; below that of 1m nothing can be fetched any more.
    unrefreshed: stored bars which the aggregates do not show yet; they are `pending`, below the floor of 1m for ever.
    """
    own = floors[timeframe]
    if ledger.covered.holds(asked) and (own is None or own <= asked.start) and not unrefreshed:
        return []
    judged = Ranges.of(asked.start, min(asked.end, settled))
    unfetchable = _below(floors[Timeframe.M1])
    expired = _below(own) & judged
    absent = judged - expired - ledger.covered
    unavailable = absent & ledger.unavailable
    rest = absent - unavailable - unfetchable
    stale = Ranges() if timeframe is Timeframe.M1 else (unrefreshed & judged) - expired - unavailable
    reasons = {
        "expired": expired | ((absent - unavailable) & unfetchable) | (stale & unfetchable),
        "unavailable": unavailable,
        "never requested": rest - ledger.wanted,
        "pending": (rest & ledger.wanted) | (stale - unfetchable),
    }
    found = [Missing(range=part, reason=reason) for reason, parts in reasons.items() for part in parts]
    return sorted(found, key=lambda one: one.range)


def _below(edge: datetime | None) -> Ranges:
    return Ranges() if edge is None else Ranges.of(min(EPOCH, edge), edge)


def _cut(part: Range) -> Iterable[Range]:
    start = part.start
    while start < part.end:
        end = min(EPOCH + ((start - EPOCH) // GRID + 1) * GRID, part.end)
        yield Range(start, end)
        start = end
