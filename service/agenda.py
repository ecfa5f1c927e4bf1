"""Decides which call to the provider comes next: who waits first, then the edge, every fifth call to older work."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from service import coverage
from service.coverage import EMPTY_TAIL_SETTLES, GRID, MINUTE, Piece, minute_floor
from service.entitlements import DELIVERED_AFTER, Entitlement
from service.instruments import AssetType
from service.market_hours import last_open, market_of, open_time
from service.ranges import Range, Ranges
from service.timeframes import EPOCH

OLDER_WORK_EVERY = 5
"""While older work waits (a backfill, a re-check), every so many-th call is its own; the others are the edge's."""
LONGEST_QUIET = timedelta(minutes=15)
"""An edge that brings nothing new is asked for ever more rarely, but at least so often."""
LONGEST_FAILURE = timedelta(hours=1)
"""Older work that fails is asked for ever more rarely, but at least so often; what lies behind it goes on."""
LONGEST_REST = timedelta(days=1)
"""No rest is longer: one that seems to be was noted by a clock that ran ahead."""


class Tracked(msgspec.Struct, frozen=True, kw_only=True):
    """What decides about one symbol's calls, as the database has it."""

    symbol: str
    ticker: str
    asset_type: AssetType
    tracked_from: datetime | None
    """Kept up to date from here on; None: nobody does, only what was asked for is fetched."""
    covered_end: datetime | None
    last_bar: datetime | None
    asked_to: datetime | None
    """Up to where (exclusive) the last good call at the edge asked; None: there was none."""
    asked_at: datetime | None
    next_attempt_at: datetime | None
    """After a failure: not before."""
    work: Ranges
    """Wanted and still to fetch, the edge included."""
    requested: Ranges
    """What of the work somebody waits for."""
    recheck: Ranges
    """Settled and to be fetched anew."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One piece to ask the provider for."""

    kind: Literal["edge", "backfill", "recheck"]
    piece: Piece
    asset_type: AssetType
    end_of_day: bool = False
    """Asked again up to the last midnight of New York, after the running day was refused."""
    origin: Piece | None = None
    """The piece that was planned, where this is only a part of it."""


class Agenda:
    """The calls of one pass. Knows no clock and no database; loaded anew for each pass, but for what is quiet."""

    def __init__(self, settle: timedelta) -> None:
        self._settle = settle
        self._entitlements: Mapping[str, Entitlement] = {}
        self._floor: datetime | None = None
        self._tracked: dict[str, Tracked] = {}
        self._awaited: deque[Call] = deque()
        self._edges: deque[Tracked] = deque()
        self._older: deque[Call] = deque()
        self._since_older = 0
        self._asked: set[str] = set()
        """Whose edge this pass has asked for."""
        self._begun: dict[str, Ranges] = {}
        """What of the past somebody waited for, and this pass has asked for."""
        self._resting: set[str] = set()
        """What failed in this pass rests to its end."""
        self._answered: set[str] = set()
        """Who was answered since this agenda began."""
        self._quiet: dict[str, tuple[int, datetime]] = {}
        """Symbol: how often in a row its edge brought nothing, and until when it is left alone."""
        self._failing: dict[tuple[str, str, datetime], tuple[int, datetime]] = {}
        """The same of older work that failed: of one kind, of one symbol, from one instant on."""

    def load(
        self,
        tracked: Iterable[Tracked],
        entitlements: Mapping[str, Entitlement],
        now: datetime,
        *,
        floor: datetime | None,
        older: bool = True,
    ) -> None:
        """Take over what is due now. floor: nothing before it is asked for. older: or else the edges alone."""
        self._entitlements = entitlements
        self._floor = floor
        self._asked.clear()
        self._begun.clear()
        self._resting.clear()
        self._tracked = {one.symbol: one for one in tracked}
        due = [(behind, one) for one in self._tracked.values() if (behind := self._due(one, now)) is not None]
        self._edges = deque(one for _, one in sorted(due, key=lambda found: found[0], reverse=True))
        self._awaited = deque(self._requested(self._tracked.values(), now))
        waiting = [*self._rechecks(now), *self._backfill(now)] if older else []
        self._older = deque(call for call in waiting if self._failing.get(_key(call), (0, now))[1] <= now)

    def await_first(self, tracked: Iterable[Tracked], now: datetime) -> None:
        """Somebody asked meanwhile: what he waits for goes first."""
        fresh = list(tracked)
        self._tracked.update({one.symbol: one for one in fresh})
        waiting = {_key(call) for call in self._awaited}
        self._awaited.extend(call for call in self._requested(fresh, now) if _key(call) not in waiting)

    def retry_first(self, call: Call) -> None:
        """Ask this next."""
        self._awaited.appendleft(call)

    def next(self, now: datetime) -> Call | None:
        """The next call; None when nothing is due any more."""
        if self._awaited:
            call = self._awaited.popleft()
            symbol = call.piece.symbol
            if call.kind == "edge":
                self._asked.add(symbol)
            else:
                self._begun[symbol] = self._begun.get(symbol, Ranges()) | Ranges([call.piece.range])
            return call
        while self._older and self._in_hand(self._older[0]):
            self._older.popleft()
        turn = self._since_older >= OLDER_WORK_EVERY - 1 and not self._unproven()
        if self._older and (turn or not self._edges):
            self._since_older = 0
            return self._older.popleft()
        while self._edges:
            one = self._edges.popleft()
            piece = self.edge(one, now)
            if piece is not None and one.symbol not in self._asked | self._resting:
                self._since_older += 1
                return Call(kind="edge", piece=piece, asset_type=one.asset_type)
        return self.next(now) if self._older else None

    def brought(self, symbol: str, now: datetime, *, news: bool) -> None:
        """Whether an edge brought anything: if not, the symbol is left alone for a while, each time longer."""
        if news:
            self._quiet.pop(symbol, None)
        else:
            times = self._quiet.get(symbol, (0, now))[0] + 1
            # Less than the minutes it names: the next pass after them shall find it due.
            rest = min(LONGEST_QUIET, (2 ** min(times - 1, 10)) * MINUTE) - MINUTE / 2
            self._quiet[symbol] = times, now + rest

    def answered(self, call: Call) -> None:
        """It was stored."""
        self._answered.add(call.piece.symbol)
        self._failing.pop(_key(call), None)

    def failed(self, call: Call, now: datetime) -> None:
        """Its symbol rests to the end of the pass; an older piece by itself for longer: nobody shall wait behind it."""
        self._resting.add(call.piece.symbol)
        if call.kind != "edge":
            times = self._failing.get(_key(call), (0, now))[0] + 1
            self._failing[_key(call)] = times, now + min(LONGEST_FAILURE, 2 ** min(times, 10) * MINUTE)

    @property
    def left(self) -> bool:
        """Whether a call may be due."""
        return bool(self._awaited or self._edges or self._older)

    def has_answered(self, symbol: str) -> bool:
        """Whether the provider ever answered for this symbol."""
        one = self._tracked.get(symbol)
        known = one is not None and (one.covered_end is not None or one.asked_to is not None)
        return known or symbol in self._answered

    def is_followed(self, symbol: str) -> bool:
        """Whether its edge is asked for, which shows what the plan gives of it."""
        one = self._tracked.get(symbol)
        return one is not None and one.tracked_from is not None

    def entitlement(self, asset_type: str) -> Entitlement:
        """How late this class comes, as far as it is known."""
        return self._entitlements.get(asset_type, Entitlement())

    def edge(self, one: Tracked, now: datetime) -> Piece | None:
        """The piece from what is covered up to what can be there by now, one page at most."""
        if one.tracked_from is None:
            return None
        target = self.entitlement(one.asset_type).target(now, self._settle)
        start = self._edge_start(one, target)
        return _piece(one, Range(start, target)) if start < target else None

    def _edge_start(self, one: Tracked, target: datetime) -> datetime:
        """What of the rolling edge lies further back than a page is older work."""
        begun = one.tracked_from or target
        start = max(begun, one.covered_end or begun, target - GRID)
        return start if self._floor is None else max(start, self._floor)

    def _due(self, one: Tracked, now: datetime) -> timedelta | None:
        """How much open time a symbol's edge is behind; None where no call would help by now.

        A minute is worth a call when it is over, when it is settled, and, still empty, when emptiness settles.
        """
        resting = self._quiet.get(one.symbol, (0, now))[1] > now
        if one.tracked_from is None or resting or _waits(one, now):
            return None
        market = market_of(one.asset_type, one.ticker)
        entitlement = self.entitlement(one.asset_type)
        target = entitlement.target(now, self._settle)
        if one.asked_to is None or one.asked_at is None:
            return open_time(market, one.tracked_from, target) or None
        # No further than what could be there then: a clock ran ahead, or the delay was not known.
        asked_to = min(one.asked_to, entitlement.target(one.asked_at, self._settle))
        behind = open_time(market, asked_to, target)
        if behind:
            return behind
        end = last_open(market, asked_to)
        if one.covered_end is not None and one.covered_end >= end:
            return None
        ages = (self._settle + entitlement.delay, EMPTY_TAIL_SETTLES)
        wanting = any(one.asked_at < end + age + MINUTE <= now for age in ages)
        if entitlement.kind == "end-of-day" and now < target + DELIVERED_AFTER:  # the day may come late
            wanting = wanting or one.last_bar is None or one.last_bar + DELIVERED_AFTER < end
        return behind if wanting else None

    def _requested(self, tracked: Iterable[Tracked], now: datetime) -> Iterator[Call]:
        older = []
        for one in tracked:
            edge = self.edge(one, now)
            if edge is not None and one.requested & Ranges([edge.range]):
                yield Call(kind="edge", piece=edge, asset_type=one.asset_type)
                older.append((one, one.requested - Ranges([edge.range])))
            else:
                older.append((one, one.requested))
        yield from self._cut(older, now)

    def _rechecks(self, now: datetime) -> Iterator[Call]:
        for one in self._tracked.values():
            start, end = one.recheck.start, one.recheck.end
            if start is not None and end is not None and not _waits(one, now):
                yield Call(kind="recheck", piece=_piece(one, Range(start, end)), asset_type=one.asset_type)

    def _backfill(self, now: datetime) -> list[Call]:
        """Older work, the newest slice first, all symbols of a slice before the next."""
        due = []
        for one in self._tracked.values():
            if one.work.start is None or _waits(one, now):
                continue
            if one.tracked_from is None:
                due.append((one, self._ripe(one.work, coverage.settled_edge(now, one.last_bar, self._settle))))
            else:
                horizon = self._edge_start(one, self.entitlement(one.asset_type).target(now, self._settle))
                due.append((one, one.work & Ranges.of(one.work.start, horizon)))
        return self._cut(due, now)

    def _ripe(self, work: Ranges, edge: datetime) -> Ranges:
        """What of the work has settled; of a tail that still settles not every minute by itself."""
        settled = work & Ranges.of(EPOCH, edge)
        if edge not in work:
            return settled
        return settled - Ranges(part for part in settled if part.end == edge and part.length < self._settle)

    def _unproven(self) -> bool:
        """Whether the plan may not cover the next older call's symbol at all, which its edge is about to show."""
        symbol = self._older[0].piece.symbol if self._older else ""
        return not self.has_answered(symbol) and any(one.symbol == symbol for one in self._edges)

    def _in_hand(self, call: Call) -> bool:
        """Whether an older call would bring nothing more by now."""
        symbol = call.piece.symbol
        return symbol in self._resting or (
            call.kind == "backfill" and not Ranges([call.piece.range]) - self._begun.get(symbol, Ranges())
        )

    def _cut(self, due: Sequence[tuple[Tracked, Ranges]], now: datetime) -> list[Call]:
        """Calls along the grid, newest slice first."""
        owners = {one.symbol: one for one, _ in due}
        within = Ranges.of(self._floor or EPOCH, minute_floor(now))
        return [
            Call(kind="backfill", piece=piece, asset_type=owners[piece.symbol].asset_type)
            for part in coverage.cut((one.symbol, one.ticker, work & within) for one, work in due)
            for piece in part.pieces
        ]


def _waits(one: Tracked, now: datetime) -> bool:
    return one.next_attempt_at is not None and now < one.next_attempt_at <= now + LONGEST_REST


def _key(call: Call) -> tuple[str, str, datetime]:
    return call.kind, call.piece.symbol, call.piece.range.start


def _piece(one: Tracked, span: Range) -> Piece:
    return Piece(symbol=one.symbol, ticker=one.ticker, range=span)
