"""Makes a past range complete: fetches what is wanted and not covered, storing and refreshing meanwhile."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Protocol

import msgspec
from psycopg import AsyncConnection

from service import coverage, ledger, store
from service.coverage import Ledger, Piece, Slice
from service.db.connect import FETCHER_LOCK, Database
from service.errors import BadPayload, BadRequest, NotAuthorized, NotEntitled, ProviderError, Unavailable, UsageError
from service.provider.client import Answer, ProviderClient, open_client
from service.provider.ratelimit import SlidingWindow
from service.ranges import Range, Ranges
from service.settings import Settings
from service.store import Stored
from service.timeframes import Timeframe

log = logging.getLogger(__name__)

FETCHERS = 4
"""Calls in flight at once, where the plan allows as many."""
WRITERS = 2
ANSWERS_WAITING = 2
"""Answers fetched and not yet being stored; bounds the memory together with the calls in flight."""
OUTAGES_UNTIL_HALT = 3
"""So many pieces in a row that find the provider unavailable end the run: the rest would fare no better."""
RETRY_AFTER = timedelta(minutes=5)
OPEN_SHARE = {"forex": 5 / 7, "commodity": 5 / 7, "index": 0.19, "crypto": 1.0, "stock": 0.48}
"""Share of all minutes in which a market of this type has bars; for the estimate only."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a backfill is going to do."""

    asked: Range
    ledgers: tuple[Ledger, ...]
    slices: tuple[Slice, ...]
    rate_limit: int | None
    """Calls a minute; None: unlimited."""

    @property
    def requests(self) -> int:
        """Calls without repetitions: one a piece."""
        return sum(len(one.pieces) for one in self.slices)

    @property
    def bars(self) -> int:
        """Roughly how many bars will come."""
        share = {one.symbol: OPEN_SHARE[one.asset_type] for one in self.ledgers}
        return round(
            sum(
                piece.range.length / coverage.MINUTE * share[piece.symbol]
                for one in self.slices
                for piece in one.pieces
            )
        )

    @property
    def minutes(self) -> int:
        """How long the rate limit alone makes it take; the first calls of a window go at once."""
        return 0 if self.rate_limit is None or not self.requests else (self.requests - 1) // self.rate_limit


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a backfill did."""

    stored: Stored
    requests: int
    seconds: float
    failures: dict[str, str]
    """Symbol to the reason of its first failed piece."""


class Watcher(Protocol):
    """Is told how a backfill goes on."""

    def planned(self, plan: Plan) -> None:
        """The work is known and about to begin."""

    def waiting(self) -> None:
        """Another process calls the provider for this database; we wait for it."""

    def stored(self, piece: Piece, stored: Stored) -> None:
        """A piece is stored."""

    def failed(self, piece: Piece, reason: str) -> None:
        """A piece could not be fetched."""

    def refreshing(self) -> None:
        """All is stored; the last aggregates are being refreshed."""


def utc_now() -> datetime:
    """The wall clock, aware UTC."""
    return datetime.now(UTC)


async def backfill(
    db: Database,
    settings: Settings,
    symbols: Sequence[str] | None,
    asked: Range,
    *,
    watcher: Watcher,
    clock: Callable[[], datetime] = utc_now,
) -> Summary:
    """Fetch, store and refresh what of the asked range is not covered for these symbols (None: all active ones).

    asked: half-open, on whole minutes. It is added to `wanted` first, so that an interrupted run is known.
    Only one process a database calls the provider: while another does, this waits and follows the ledger.
    Cancelling it at any time leaves whole pieces only. Failing pieces do not stop the others; they are in the summary.
    Raises SourceMismatch, UsageError (below the floor), and psycopg's errors.
    """
    began = time.monotonic()
    now = clock()
    _refuse_below_floor(db, settings, asked, now)
    key = settings.require_api_key()
    async with _connection(db) as conn:
        chosen = await ledger.ledgers(conn, symbols)
        await ledger.want(conn, [one.symbol for one in chosen], asked)
    async with _sole_fetcher(db, watcher):
        async with _connection(db) as conn:
            ledgers = await ledger.ledgers(conn, [one.symbol for one in chosen])
            history = await ledger.recent_calls(conn, now - timedelta(minutes=1))
            await db.engine.refresh(conn, settings.retention, now)
        slices = coverage.plan(ledgers, Ranges.of(asked.start, min(asked.end, coverage.minute_floor(now))))
        plan = Plan(asked=asked, ledgers=tuple(ledgers), slices=tuple(slices), rate_limit=settings.polygon_rate_limit)
        watcher.planned(plan)
        limiter = _limiter(db, settings, history)
        async with open_client(settings.polygon_base_url, key, limiter=limiter, clock=clock) as client:
            run = _Run(db, settings, client, slices, watcher=watcher, clock=clock)
            try:
                await run.go()
            except BaseExceptionGroup as group:
                raise _first(group) from group
            return Summary(
                stored=run.total, requests=client.calls, seconds=time.monotonic() - began, failures=run.failures
            )


class _Run:
    """One run's pipeline: fetchers, writers and one refresher, with bounded queues between them."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        client: ProviderClient,
        slices: Sequence[Slice],
        *,
        watcher: Watcher,
        clock: Callable[[], datetime],
    ) -> None:
        self.total = Stored()
        self.failures: dict[str, str] = {}
        self._db = db
        self._settings = settings
        self._client = client
        self._watcher = watcher
        self._clock = clock
        self._work = iter([(one.start, piece) for one in slices for piece in one.pieces])
        self._open = Counter({one.start: len(one.pieces) for one in slices})
        self._answers: asyncio.Queue[tuple[datetime, Piece, Answer, datetime]] = asyncio.Queue(ANSWERS_WAITING)
        self._slice_done = asyncio.Event()
        self._all_stored = False
        self._halted: str | None = None
        self._refused: dict[str, str] = {}
        self._outages = 0

    async def go(self) -> None:
        """Work until nothing is left."""
        fetchers = min(FETCHERS, self._settings.polygon_rate_limit or FETCHERS)
        async with asyncio.TaskGroup() as helpers:
            writing = [helpers.create_task(self._write()) for _ in range(WRITERS)]
            helpers.create_task(self._refresh())
            for start, piece in islice(self._work, 1):
                await self._obtain(start, piece)  # alone: a key that is refused costs one call
            async with asyncio.TaskGroup() as fetching:
                for _ in range(fetchers):
                    fetching.create_task(self._fetch())
            await self._answers.join()
            for task in writing:
                task.cancel()
            self._watcher.refreshing()
            self._all_stored = True
            self._slice_done.set()

    async def _fetch(self) -> None:
        for start, piece in self._work:
            await self._obtain(start, piece)

    async def _obtain(self, start: datetime, piece: Piece) -> None:
        asked_at = self._clock()
        try:
            answer = await self._ask(piece)
        except ProviderError as exc:
            await self._fail(piece, exc)
            self._finish(start)
        else:
            self._outages = 0
            await self._answers.put((start, piece, answer, asked_at))

    async def _ask(self, piece: Piece) -> Answer:
        if self._halted is not None:
            raise ProviderError(self._halted)
        if piece.symbol in self._refused:
            raise ProviderError(self._refused[piece.symbol])
        return await self._client.fetch_bars(piece.ticker, piece.range.start, piece.range.end)

    async def _fail(self, piece: Piece, exc: ProviderError) -> None:
        reason = str(exc)
        match exc:
            case NotAuthorized():
                self._halted = reason
            case NotEntitled() | BadRequest():
                self._refused[piece.symbol] = reason
            case Unavailable():
                self._outages += 1
                if self._outages >= OUTAGES_UNTIL_HALT:
                    self._halted = reason
            case BadPayload() | ProviderError():
                pass
        if piece.symbol not in self.failures:
            self.failures[piece.symbol] = reason
            async with _connection(self._db) as conn:
                await ledger.note_failure(conn, piece.symbol, reason, self._clock() + RETRY_AFTER)
        self._watcher.failed(piece, reason)

    async def _write(self) -> None:
        while True:
            start, piece, answer, asked_at = await self._answers.get()
            async with _connection(self._db) as conn:
                stored = await store.store_piece(
                    conn,
                    self._db.engine,
                    piece,
                    answer.bars,
                    answer.rejected,
                    source=answer.source,
                    now=asked_at,
                    settle=timedelta(minutes=self._settings.settle_minutes),
                )
            self.total += stored
            self._watcher.stored(piece, stored)
            self._finish(start)
            self._answers.task_done()

    def _finish(self, start: datetime) -> None:
        self._open[start] -= 1
        if not self._open[start]:
            self._slice_done.set()

    async def _refresh(self) -> None:
        last = False
        while not last:
            await self._slice_done.wait()
            self._slice_done.clear()
            last = self._all_stored
            async with _connection(self._db) as conn:
                await self._db.engine.refresh(conn, self._settings.retention, self._clock())


def _refuse_below_floor(db: Database, settings: Settings, asked: Range, now: datetime) -> None:
    floor = db.engine.floors(settings.retention, now)[Timeframe.M1]
    if floor is not None and asked.start < floor:
        raise UsageError(
            f"{asked.start:%Y-%m-%d %H:%M} lies below {floor:%Y-%m-%d}, from where on one-minute bars are kept: "
            "start later, or raise RETENTION_1M (`off` keeps everything)"
        )
    if asked.start >= coverage.minute_floor(now):
        raise UsageError(f"{asked.start:%Y-%m-%d %H:%M} lies in the future")


def _limiter(db: Database, settings: Settings, history: Sequence[datetime]) -> SlidingWindow:
    if settings.polygon_rate_limit is None:
        return SlidingWindow(None)

    async def record(at: datetime) -> None:
        async with _connection(db) as conn:
            await ledger.record_call(conn, at, timedelta(minutes=2))

    return SlidingWindow(settings.polygon_rate_limit, history=history, record=record)


@asynccontextmanager
async def _connection(db: Database) -> AsyncIterator[AsyncConnection[Any]]:
    """A connection of the pool; CancelledError if this task was cancelled meanwhile.

    The pool waits with `asyncio.wait_for`, which up to Python 3.11 forgets a cancellation that comes with its result.
    """
    async with db.connection() as conn:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
        yield conn


@asynccontextmanager
async def _sole_fetcher(db: Database, watcher: Watcher) -> AsyncIterator[None]:
    """Hold the lock whose holder alone calls the provider; while another has it, wait."""
    async with db.dedicated() as conn:
        told = False
        while True:
            cursor = await conn.execute("SELECT pg_try_advisory_lock(%s)", (FETCHER_LOCK,))
            if await cursor.fetchone() == (True,):
                break
            if not told:
                watcher.waiting()
                told = True
            await asyncio.sleep(0.5)
        yield


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the run, without the tasks that fell with it."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
