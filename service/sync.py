"""One pass of the worker: asks for what is due as far as the plan allows, and learns from what the provider answers."""

import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection

from service import heartbeat, ledger, tracking
from service.agenda import Agenda, Call
from service.coverage import GRID, MINUTE, minute_floor
from service.db.connect import Database
from service.errors import BadRequest, NotAuthorized, NotEntitled, ProviderError, Unavailable, first_of
from service.heartbeat import ProviderState
from service.history import HistoryLimits
from service.pipeline import Pipeline
from service.provider.client import Answer, ProviderClient
from service.provider.ratelimit import SlidingWindow
from service.ranges import Range
from service.recognition import Recognition
from service.settings import Settings
from service.store import Stored
from service.timeframes import EPOCH, Timeframe

log = logging.getLogger(__name__)

PASS_LASTS = timedelta(seconds=55)
"""After that a pass makes no further call: the next one, a minute after it began, knows what is due by then."""
MOST_FETCHERS = 16
"""Calls in flight at once where the plan has no limit."""
OUTAGES_UNTIL_PAUSE = 2
SHORTEST_PAUSE, LONGEST_PAUSE = timedelta(seconds=15), timedelta(minutes=5)
UNAUTHORIZED_PAUSE = timedelta(minutes=10)
RESTS: Mapping[type[ProviderError], timedelta] = {
    NotEntitled: timedelta(days=1),
    Unavailable: MINUTE,
}
"""How long a symbol rests after a failure; after others a minute, doubled each time."""
LONGEST_REST = timedelta(minutes=10)
LONGEST_REST_AFTER_BAD_REQUEST = timedelta(hours=1)
RECHECK_EVERY = timedelta(days=1)


class Sync:
    """The worker's own state between its passes. One instance belongs to the holder of the fetcher's lock."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        client: ProviderClient,
        limiter: SlidingWindow,
        *,
        clock: Callable[[], datetime],
        rng: random.Random | None = None,
    ) -> None:
        self.agenda = Agenda(timedelta(minutes=settings.settle_minutes))
        self.provider: ProviderState = "ok"
        self.calls: Counter[str] = Counter()
        """Good calls by their kind, since this worker began."""
        self.asked = False
        """Somebody asked for something since the last look."""
        self._db = db
        self._settings = settings
        self._client = client
        self._limiter = limiter
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._message: str | None = None
        self._paused_until: datetime | None = None
        self._outages = 0
        self._recognition = Recognition(timedelta(minutes=settings.settle_minutes))
        self._limits, self._limits_since = HistoryLimits(), clock()
        self._failures: list[tuple[Call, ProviderError]] = []
        self._failed = 0
        self._noted_state: tuple[ProviderState, str | None, datetime | None] = ("ok", None, None)
        self._last_slice: datetime | None = None
        self._until = EPOCH

    async def run_pass(self, *, only: Sequence[str] | None = None, lasts: timedelta = PASS_LASTS) -> str:
        """Make the calls that are due and that the plan allows; says what it did.

        only: the edge of these symbols, and no older work. lasts: after that no further call is made.
        What fails is noted with the symbol and tried again later. Raises psycopg's errors and DatabaseError: then what
        was stored stays, and the next pass begins with the rest.
        """
        now = self._clock()
        # A pause that seems longer than the longest was begun by a clock that ran ahead.
        if self._paused_until is not None and now < self._paused_until <= now + UNAUTHORIZED_PAUSE:
            return f"paused until {self._paused_until:%H:%M:%S} UTC: {self._message}"
        self._until = now + lasts
        await self._load(now, only)
        before, self._failed = Counter(self.calls), 0
        pipeline = Pipeline(
            self._db,
            self._settings,
            self._client,
            self,
            fetchers=_fetchers(self._settings),
            writers=1,
            clock=self._clock,
        )
        try:
            await pipeline.go()
        except BaseExceptionGroup as errors:
            raise first_of(errors) from errors
        await self._note(self._clock())
        made = self.calls - before
        total = pipeline.total
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(made.items())) or "none due"
        return f"calls: {kinds}; bars: {total.new:,} new, {total.changed:,} changed" + (
            f"; {self._failed} failed" if self._failed else ""
        )

    async def mark_rechecks(self) -> str:
        """Once a day and symbol the settled bars of the last RECHECK_DAYS are to be fetched anew."""
        now = self._clock()
        floor = self._floor(now)
        start = now - timedelta(days=self._settings.recheck_days)
        start = Timeframe.D1.ceil(start if floor is None else max(start, floor))
        end = minute_floor(now)
        if start >= end:
            return "RECHECK_DAYS is 0"
        async with self._db.connection() as conn:
            marked = await tracking.mark_rechecks(conn, Range(start, end), now, RECHECK_EVERY)
        return f"{marked} symbols to be fetched anew from {start:%Y-%m-%d} on"

    async def mark_clipped(self) -> str:
        """What a plan's history does not reach is unavailable, not empty."""
        async with self._db.connection() as conn:
            found = await tracking.mark_clipped(conn)
        return f"the plan's history ends before what was asked for: {', '.join(found)}" if found else "nothing to mend"

    # The source of the pipeline

    async def next(self) -> Call | None:
        """The next call that is due, chosen when the plan allows it to be made."""
        await self._note(self._clock())
        while self._clock() < self._until and self._paused_until is None:
            if self.asked:
                self.asked = False
                await self._load_requests()
            if not self.agenda.left:
                return None
            await self._limiter.free()
            now = self._clock()
            call = self.agenda.next(now)
            if call is None:
                return None
            if call.kind == "edge":
                return self._recognition.probing(call, now)
            if call.kind == "backfill":
                call, below = self._limits.cut(call)
                if below is not None:
                    async with self._db.connection() as conn:
                        await tracking.mark_unavailable(conn, *below)
            if call is not None:
                return call
        return None

    def failed(self, call: Call, exc: ProviderError) -> None:
        """Decides what follows: a pause for all, another range for this call, or a rest for this symbol."""
        now = self._clock()
        match exc:
            case NotAuthorized():
                if self.provider != "unauthorized":
                    log.error("%s", exc)
                self._pause("unauthorized", exc, UNAUTHORIZED_PAUSE)
                return
            case Unavailable():
                self._outages += 1
                if self._outages >= OUTAGES_UNTIL_PAUSE:
                    pause = min(SHORTEST_PAUSE * 2 ** min(self._outages - OUTAGES_UNTIL_PAUSE, 10), LONGEST_PAUSE)
                    self._pause("unreachable", exc, pause * self._rng.uniform(0.5, 1.0))
            case NotEntitled() if call.kind == "edge" and not call.end_of_day:
                earlier, again = self._recognition.refused(call, now)
                if earlier is not None:
                    self.agenda.retry_first(earlier)
                if again:
                    return
            case NotEntitled() if call.kind == "backfill" and self._limits.refused(call, self.agenda):
                return
            case _:
                pass
        self._failed += 1
        self._failures.append((call, exc))
        self.agenda.failed(call, now)

    def stored(self, call: Call, answer: Answer, stored: Stored) -> bool:
        """Learns from an answer; a refresh is worth it when older work moves on to another slice."""
        self.calls[call.kind] += 1
        self._outages = 0
        self.provider, self._message = "ok", None
        self.agenda.answered(call)
        if call.kind == "edge":
            news = stored.new + stored.changed > 0
            self.agenda.brought(call.piece.symbol, answer.asked_at, news=news)
            newest = int(answer.bars.ts[-1]) if len(answer.bars) else None
            self._recognition.answered(call, newest, answer.asked_at, delayed=answer.delayed)
            return False
        self._limits.answered(call, self.agenda)
        here = call.piece.range.start - (call.piece.range.start - EPOCH) % GRID
        moved, self._last_slice = here != self._last_slice, here
        return moved

    def _pause(self, state: ProviderState, exc: ProviderError, length: timedelta) -> None:
        self.provider, self._message = state, str(exc)
        self._paused_until = self._clock() + length
        log.warning("no call until %s: %s", f"{self._paused_until:%H:%M:%S}", exc)

    def _floor(self, now: datetime) -> datetime | None:
        return self._db.engine.floors(self._settings.retention, now)[Timeframe.M1]

    async def _load(self, now: datetime, only: Sequence[str] | None) -> None:
        floor = self._floor(now)
        self._paused_until = None
        self.asked = False
        if now - self._limits_since > RECHECK_EVERY:  # the plan may reach further by now
            self._limits, self._limits_since = HistoryLimits(), now
        history = Timeframe.D1.floor(now - timedelta(days=self._settings.backfill_days))
        async with self._db.connection() as conn:
            since = history if floor is None else max(history, floor)
            await tracking.track(conn, since, minute_floor(now), only)
            within = Range(floor or EPOCH, minute_floor(now))
            await tracking.answer_requests(conn, within)
            self._recognition.load(await tracking.entitlements(conn))
            due = await tracking.due(conn, within, symbols=only)
        self.agenda.load(due, self._recognition.known, now, floor=floor, older=only is None)

    async def _load_requests(self) -> None:
        now = self._clock()
        within = Range(self._floor(now) or EPOCH, minute_floor(now))
        async with self._db.connection() as conn:
            self.agenda.await_first(await tracking.due(conn, within, requested_only=True), now)

    async def _note(self, now: datetime) -> None:
        """Write down what failed, what was recognised, and how the provider does."""
        failures, self._failures = self._failures, []
        unavailable = self._limits.found()
        state = (self.provider, self._message, self._paused_until)
        fresh = self._recognition.fresh()
        if not failures and not unavailable and not fresh and state == self._noted_state:
            return
        async with self._db.connection() as conn:
            for call, exc in failures:
                await self._note_failure(conn, call, exc, now)
            for symbol, below in unavailable:
                await tracking.mark_unavailable(conn, symbol, below)
            await tracking.save_entitlements(conn, fresh)
            if state != self._noted_state:
                await heartbeat.provider_is(conn, self.provider, self._message, now, self._paused_until)
        self._noted_state = state

    async def _note_failure(self, conn: AsyncConnection[Any], call: Call, exc: ProviderError, now: datetime) -> None:
        # After an outage all go on at once: that one of them met it is not its own fault.
        rest = next((rest for kind, rest in RESTS.items() if isinstance(exc, kind)), None)
        refused = isinstance(exc, NotEntitled)
        longest = LONGEST_REST_AFTER_BAD_REQUEST if isinstance(exc, BadRequest) else LONGEST_REST
        times = await ledger.note_failure(
            conn, call.piece.symbol, str(exc), refused=refused, now=now, rest=rest, longest=longest
        )
        log.warning("%s %s: %s (attempt %d in a row)", call.piece.symbol, call.piece.range, exc, times)


def _fetchers(settings: Settings) -> int:
    """One at a time where calls are rare: each is chosen as late as possible."""
    limit = settings.polygon_rate_limit
    return MOST_FETCHERS if limit is None else min(MOST_FETCHERS, 1 + limit // 60)
