"""Makes a past range complete: what is wanted and not covered is fetched, by one process a database."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import msgspec

from service import coverage, ledger
from service.agenda import Call
from service.coverage import Piece
from service.db.connect import Database
from service.errors import (
    BadRequest,
    NotAuthorized,
    NotEntitled,
    ProviderError,
    Unavailable,
    UsageError,
    first_of,
)
from service.follow import Follower
from service.lock import LockLost, fetching_alone, guard
from service.pipeline import Pipeline
from service.plan import Plan, Summary, Watcher, plan_of, refuse_below
from service.provider.client import Answer, open_client
from service.provider.ratelimit import SlidingWindow
from service.ranges import Range
from service.settings import Settings
from service.store import Stored
from service.timeframes import Timeframe, utc_now

FETCHERS = 4
"""Calls in flight at once, where the plan allows as many."""
OUTAGES_UNTIL_HALT = 3
"""So many pieces in a row that find the provider unavailable end the run: the rest would fare no better."""
RETRY_AFTER = timedelta(minutes=5)


async def backfill(
    db: Database,
    settings: Settings,
    symbols: Sequence[str] | None,
    asked: Range,
    *,
    watcher: Watcher,
    retry_unavailable: bool = False,
    clock: Callable[[], datetime] = utc_now,
) -> Summary:
    """Fetch, store and refresh what of the asked range is not covered for these symbols (None: all active ones).

    asked: half-open, on whole minutes. It is added to `wanted` first, so that an interrupted run is known.
    retry_unavailable: ask again for what the provider did not have, or had no usable bar for.
    Only one process a database calls the provider: while another does, this follows what that one does, and takes
    over if it ends first. Cancelling it at any time leaves whole pieces only. Failing pieces do not stop the others;
    they are in the summary. Raises SourceMismatch, UsageError (below the floor), and psycopg's errors.
    """
    began = time.monotonic()
    now = clock()
    refuse_below(db.engine.floors(settings.retention, now)[Timeframe.M1], asked.start)
    if asked.start >= coverage.minute_floor(now):
        raise UsageError(f"{asked.start:%Y-%m-%d %H:%M} lies in the future")
    key = settings.require_api_key()
    async with db.connection() as conn:
        chosen = [one.symbol for one in await ledger.ledgers(conn, symbols)]
        await ledger.want(conn, chosen, asked)
        if retry_unavailable:
            await ledger.forget_unavailable(conn, chosen, asked)
        await ledger.call_worker(conn)
    follower = Follower(db, settings, chosen, asked, watcher=watcher, clock=clock)
    async with fetching_alone(db, follower.look) as lock:
        if lock is None:
            return Summary(
                stored=Stored(), requests=0, seconds=time.monotonic() - began, failures=follower.failures, followed=True
            )
        now = clock()
        async with db.connection() as conn:
            ledgers = await ledger.ledgers(conn, chosen)
            history = await ledger.recent_calls(conn, now - timedelta(minutes=1))
            await db.engine.refresh(conn, settings.retention, now)
        plan = plan_of(ledgers, asked, settings.polygon_rate_limit, now)
        watcher.planned(plan)
        limiter = limiter_of(db, settings, history)
        async with open_client(settings.polygon_base_url, key, limiter=limiter, clock=clock) as client:
            source = _Slices(db, settings, plan, watcher, clock)
            fetchers = min(FETCHERS, settings.polygon_rate_limit or FETCHERS)
            pipeline = Pipeline(db, settings, client, source, fetchers=fetchers, clock=clock)
            try:
                async with asyncio.TaskGroup() as group:
                    guarding = group.create_task(guard(lock))
                    await pipeline.go()
                    guarding.cancel()
            except BaseExceptionGroup as errors:
                error = first_of(errors)
                if isinstance(error, LockLost):
                    raise LockLost(f"{error}: run the same command again") from errors
                raise error from errors
            await _note_failures(db, source.failures, clock())
            return Summary(
                stored=pipeline.total,
                requests=client.calls,
                seconds=time.monotonic() - began,
                failures=source.failures,
            )


def limiter_of(db: Database, settings: Settings, history: Sequence[datetime]) -> SlidingWindow:
    """The plan's calls a minute, each recorded in the database so that a restart does not exceed them."""
    if settings.polygon_rate_limit is None:
        return SlidingWindow(None)

    async def record(at: datetime) -> None:
        async with db.connection() as conn:
            await ledger.record_call(conn, at, timedelta(minutes=2))

    return SlidingWindow(settings.polygon_rate_limit, history=history, record=record)


class _Slices:
    """The pipeline's source: all pieces of a plan, in their order."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        plan: Plan,
        watcher: Watcher,
        clock: Callable[[], datetime],
    ) -> None:
        self.failures: dict[str, str] = {}
        self._db = db
        self._settings = settings
        self._watcher = watcher
        self._clock = clock
        self._asset_types = {one.symbol: one.asset_type for one in plan.ledgers}
        self._pieces = iter([piece for one in plan.slices for piece in one.pieces])
        self._slice_of = {piece: one.start for one in plan.slices for piece in one.pieces}
        self._open = Counter({one.start: len(one.pieces) for one in plan.slices})
        self._halted: str | None = None
        self._refused: dict[str, str] = {}
        self._outages = 0

    async def next(self) -> Call | None:
        """The next piece that can be had; the others are told as failed."""
        for piece in self._pieces:
            reason = self._halted or self._refused.get(piece.symbol)
            if reason is not None:
                self._tell(piece, reason)
                continue
            above = self._above_floor(piece)
            if above is not None:
                return Call(kind="backfill", piece=above, asset_type=self._asset_types[piece.symbol], origin=piece)
            self._finish(piece)
        return None

    def failed(self, call: Call, exc: ProviderError) -> None:
        """One that no repetition can mend ends the run, or what is left of the symbol."""
        reason = str(exc)
        match exc:
            case NotAuthorized():
                self._halted = reason
            case NotEntitled() | BadRequest():
                self._refused[call.piece.symbol] = reason
            case Unavailable():
                self._outages += 1
                if self._outages >= OUTAGES_UNTIL_HALT:
                    self._halted = reason
            case _:
                pass
        self._tell(call.origin or call.piece, reason)

    def stored(self, call: Call, _: Answer, stored: Stored) -> bool:
        """A slice is refreshed once, when all its pieces are done."""
        self._outages = 0
        piece = call.origin or call.piece
        self._watcher.stored(piece, stored)
        return self._finish(piece)

    def _tell(self, piece: Piece, reason: str) -> None:
        self.failures.setdefault(piece.symbol, reason)
        self._watcher.failed(piece, reason)
        self._finish(piece)

    def _finish(self, piece: Piece) -> bool:
        start = self._slice_of[piece]
        self._open[start] -= 1
        if not any(self._open.values()):
            self._watcher.refreshing()
        return not self._open[start]

    def _above_floor(self, piece: Piece) -> Piece | None:
        """In a long run the floor rises after it was planned."""
        floor = self._db.engine.floors(self._settings.retention, self._clock())[Timeframe.M1]
        if floor is None or piece.range.start >= floor:
            return piece
        if piece.range.end <= floor:
            return None
        return msgspec.structs.replace(piece, range=Range(floor, piece.range.end))


async def _note_failures(db: Database, failures: dict[str, str], now: datetime) -> None:
    """Last, since a piece that works clears what an earlier one of its symbol left."""
    if failures:
        async with db.connection() as conn:
            for symbol, reason in failures.items():
                await ledger.note_failure(conn, symbol, reason, now=now, rest=RETRY_AFTER)
