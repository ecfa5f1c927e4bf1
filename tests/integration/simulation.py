"""A worker in simulated time: the clock and the provider are invented, the database and the HTTP between them are real."""

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from service import ledger
from service.db.connect import Database
from service.provider.client import ProviderClient, open_client
from service.provider.ratelimit import SlidingWindow
from service.provider.transport import Retry
from service.replay import ReplayServer
from service.settings import Settings
from service.sync import Sync


class Clock:
    """The present, for the worker and the provider alike."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Time passes."""
        self.now += timedelta(seconds=seconds)


class Simulation:
    """Passes of a worker, one process after another."""

    def __init__(self, db: Database, settings: Settings, replay: ReplayServer, clock: Clock, seed: int = 0) -> None:
        self.db = db
        self.settings = settings
        self.replay = replay
        self.clock = clock
        self.dice = random.Random(seed)
        self.calls: Counter[str] = Counter()
        self.said: list[str] = []

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Sync]:
        """A worker that begins now, and ends with the context as a killed one does: nothing is tidied up."""
        async with self.db.connection() as conn:
            history = await ledger.recent_calls(conn, self.clock() - timedelta(minutes=1))

        async def record(at: datetime) -> None:
            async with self.db.connection() as conn:
                await ledger.record_call(conn, at, timedelta(minutes=2))

        limiter = SlidingWindow(
            self.settings.polygon_rate_limit,
            clock=self.clock,
            sleep=self.clock.sleep,
            history=history,
            record=record if self.settings.polygon_rate_limit else None,
        )
        async with open_client(
            self.settings.polygon_base_url,
            self.settings.require_api_key(),
            limiter=limiter,
            clock=self.clock,
            retry=Retry(attempts=2, base=0.0, window=0.0),
        ) as client:
            sync = Sync(self.db, self.settings, client, limiter, clock=self.clock, rng=self.dice)
            yield sync
            self.calls.update(sync.calls)

    async def live(self, sync: Sync, until: datetime, step: timedelta) -> None:
        """A pass every `step`, a look for re-checks every hour, up to an instant."""
        while self.clock() < until:
            began = self.clock()
            self.replay.now = began
            self.said.append(await sync.mark_rechecks())
            self.said.append(await sync.run_pass())
            self.clock.now = max(self.clock(), began + step)
