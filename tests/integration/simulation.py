"""A worker in simulated time: clock and provider are invented, the database and the HTTP between them are real."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from service import heartbeat, ledger
from service.coverage import MINUTE, minute_floor
from service.db.connect import Database
from service.db.preflight import checked
from service.instruments import SEED
from service.market_hours import market_of, open_time
from service.provider.client import open_client
from service.provider.ratelimit import SlidingWindow
from service.provider.transport import Retry
from service.ranges import Range
from service.replay import ReplayConfig, ReplayServer, running
from service.settings import Settings
from service.sync import Sync
from tests.integration.backfilling import asked_ranges, assert_same, expected, picture
from tests.integration.marketdata import only_active, wrong_candles


class Clock:
    """The present, for the worker and the provider alike."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.ahead = timedelta()
        """How far the worker's machine is ahead of the provider, where both are `simulated`."""

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
        self.dice = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.calls: Counter[str] = Counter()
        self.said: list[str] = []
        self.least = 0
        """Calls at the edge that no worker could save: a symbol's market was open since its last look."""
        self._looked: dict[str, datetime] = {}

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
            self._count(began)
            self.clock.now = max(self.clock(), began + step)

    def _count(self, now: datetime) -> None:
        for one in SEED:
            looked = self._looked.get(one.symbol, now - timedelta(days=1))
            self.least += open_time(market_of(one.asset_type, one.ticker), looked, now) > timedelta()
            self._looked[one.symbol] = now

    async def minutes(self, sync: Sync, count: int = 1) -> None:
        """So many passes, a minute apart."""
        await self.live(sync, self.clock() + count * MINUTE, MINUTE)

    async def sleep(self, length: timedelta) -> None:
        """Nothing happens for so long."""
        self.clock.now += length

    def asked(self, since: int = 0) -> list[tuple[str, Range]]:
        """Ticker and range of every request but so many."""
        return asked_ranges(self.replay)[since:]

    async def assert_equal(self, since: datetime, *symbols: str, until: datetime | None = None) -> None:
        """Every bar and candle of these symbols as the provider has them, and no other; none of the running minute."""
        assert self.settings.database_url is not None
        end = minute_floor(self.clock() - self.clock.ahead if until is None else until)
        assert_same(picture(self.settings.database_url), expected(self.replay, symbols, Range(since, end)))
        async with self.db.connection() as conn:
            assert await wrong_candles(conn) == []


@asynccontextmanager
async def simulated(
    settings: Callable[..., Settings],
    begin: datetime,
    *symbols: str,
    config: ReplayConfig | None = None,
    **changes: str,
) -> AsyncIterator[Simulation]:
    """A database with these active symbols, a provider, and a clock for both; five calls a minute, a day of history."""
    clock = Clock(begin)
    with running(config, clock=lambda: clock() - clock.ahead) as replay:
        usual = {"POLYGON_API_KEY": "simulated", "BACKFILL_DAYS": "1", "RECHECK_DAYS": "0", "RETENTION_1M": "off"}
        chosen = settings(**usual | {"POLYGON_BASE_URL": replay.url} | changes)
        assert chosen.database_url is not None
        async with checked(chosen.database_url, chosen.engine) as db:
            async with db.connection() as conn:
                await only_active(conn, *symbols)
                await heartbeat.begin(conn, begin)
            yield Simulation(db, chosen, replay, clock)
