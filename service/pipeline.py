"""Fetching, storing and refreshing at the same time: what a backfill spends its time in."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import islice

import msgspec

from service import store
from service.coverage import Piece, Slice
from service.db.connect import Database
from service.errors import BadPayload, BadRequest, NotAuthorized, NotEntitled, ProviderError, Unavailable
from service.plan import Watcher
from service.provider.client import Answer, ProviderClient
from service.ranges import Range
from service.settings import Settings
from service.store import Stored
from service.timeframes import Timeframe

FETCHERS = 4
"""Calls in flight at once, where the plan allows as many."""
WRITERS = 2
ANSWERS_WAITING = 2
"""Answers fetched and not yet being stored; bounds the memory together with the calls in flight."""
OUTAGES_UNTIL_HALT = 3
"""So many pieces in a row that find the provider unavailable end the run: the rest would fare no better."""


class Pipeline:
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
        floor = self._db.engine.floors(self._settings.retention, asked_at)[Timeframe.M1]
        if floor is not None and piece.range.start < floor:  # a long run: the floor has risen since it was planned
            if piece.range.end <= floor:
                self._finish(start)
                return
            piece = msgspec.structs.replace(piece, range=Range(floor, piece.range.end))
        try:
            answer = await self._ask(piece)
        except ProviderError as exc:
            self._fail(piece, exc)
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

    def _fail(self, piece: Piece, exc: ProviderError) -> None:
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
        self.failures.setdefault(piece.symbol, reason)
        self._watcher.failed(piece, reason)

    async def _write(self) -> None:
        while True:
            start, piece, answer, asked_at = await self._answers.get()
            async with self._db.connection() as conn:
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
            async with self._db.connection() as conn:
                await self._db.engine.refresh(conn, self._settings.retention, self._clock())
