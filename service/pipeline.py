"""Fetching, storing and refreshing at the same time: what a backfill and a pass of the worker spend their time in."""

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from service.agenda import Call
from service.db.conflicts import CONFLICTS
from service.db.connect import Database
from service.errors import ProviderError
from service.provider.client import Answer, ProviderClient
from service.settings import Settings
from service.store import Answered, Stored, store

WRITERS = 2
EDGES_TOGETHER = 64
"""So many answers at the edge share a transaction at most."""
TRIES = 5
"""So often is a transaction begun that lost a conflict with another one."""


class Source(Protocol):
    """Says what to fetch, and is told what became of it."""

    async def next(self) -> Call | None:
        """The next call, chosen as late as possible; None at the end."""

    def failed(self, call: Call, exc: ProviderError) -> None:
        """The provider gave no usable answer; nothing was stored."""

    def stored(self, call: Call, answer: Answer, stored: Stored) -> bool:
        """It is in the database. Returns whether now is a good time to refresh the aggregates."""


class Pipeline:
    """One run's pipeline: fetchers, writers and one refresher, with bounded queues between them."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        client: ProviderClient,
        source: Source,
        *,
        fetchers: int,
        writers: int = WRITERS,
        clock: Callable[[], datetime],
    ) -> None:
        self.total = Stored()
        self._db = db
        self._settings = settings
        self._client = client
        self._source = source
        self._fetchers = fetchers
        self._writers = writers
        self._clock = clock
        # Bounds the memory, together with the calls in flight.
        self._answers: asyncio.Queue[tuple[Call, Answer]] = asyncio.Queue(max(2, fetchers // 2))
        self._refresh_due = asyncio.Event()
        self._all_stored = False

    async def go(self) -> None:
        """Work until the source has no more, all is stored, and the aggregates show it."""
        async with asyncio.TaskGroup() as helpers:
            writing = [helpers.create_task(self._write()) for _ in range(self._writers)]
            helpers.create_task(self._refresh())
            if await self._obtain():  # alone: a key that is refused costs one call
                async with asyncio.TaskGroup() as fetching:
                    for _ in range(self._fetchers):
                        fetching.create_task(self._fetch())
            await self._answers.join()
            for task in writing:
                task.cancel()
            self._all_stored = True
            self._refresh_due.set()

    async def _fetch(self) -> None:
        while await self._obtain():
            pass

    async def _obtain(self) -> bool:
        """Make the next call; False when there is none."""
        call = await self._source.next()
        if call is None:
            return False
        try:
            answer = await self._client.fetch_bars(call.piece.ticker, call.piece.range.start, call.piece.range.end)
        except ProviderError as exc:
            self._source.failed(call, exc)
        else:
            await self._answers.put((call, answer))
        return True

    async def _write(self) -> None:
        while True:
            batch = [await self._answers.get()]
            later: list[tuple[Call, Answer]] = []
            # Edges are small: one transaction for all that wait, each of another symbol.
            while (
                batch[0][0].kind == "edge" and not later and len(batch) < EDGES_TOGETHER and not self._answers.empty()
            ):
                call, answer = self._answers.get_nowait()
                alike = call.kind == "edge" and all(call.piece.symbol != known.piece.symbol for known, _ in batch)
                (batch if alike else later).append((call, answer))
            for part in (batch, later):
                if part:
                    await self._store(part)
                for _ in part:
                    self._answers.task_done()

    async def _store(self, batch: Sequence[tuple[Call, Answer]]) -> None:
        answers = [
            Answered(
                piece=call.piece,
                bars=answer.bars,
                rejected=answer.rejected,
                source=answer.source,
                asked_at=answer.asked_at,
                kind=call.kind,
            )
            for call, answer in batch
        ]
        settle = timedelta(minutes=self._settings.settle_minutes)
        for tries_left in reversed(range(TRIES)):
            try:
                async with self._db.connection() as conn:
                    counts = await store(conn, self._db.engine, answers, settle=settle)
                break
            except CONFLICTS:
                if not tries_left:
                    raise
                await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - jitter
        for (call, answer), stored in zip(batch, counts, strict=True):
            self.total += stored
            if self._source.stored(call, answer, stored):
                self._refresh_due.set()

    async def _refresh(self) -> None:
        last = False
        while not last:
            await self._refresh_due.wait()
            self._refresh_due.clear()
            last = self._all_stored
            # By the provider's clock where ours runs ahead: what is refreshed past the present hides what follows.
            now = self._clock() - max(self._client.clock_ahead or timedelta(), timedelta())
            async with self._db.connection() as conn:
                await self._db.engine.refresh(conn, self._settings.retention, now)
