"""The part of `make bench` about the worker: what a pass costs, and what it costs those who read meanwhile.

The provider of the passes is a function of this process that answers from memory, so that what is measured is ours and
the database's.
"""

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import httpx

from service.bars import to_ms
from service.coverage import MINUTE
from service.db.connect import Database
from service.db.preflight import checked
from service.instruments import SEED
from service.provider.client import ProviderClient
from service.provider.ratelimit import SlidingWindow
from service.settings import load
from service.sync import Sync

NOON = datetime(2026, 6, 3, 14, 0, 5, tzinfo=UTC)
"""A Wednesday on which every market is open."""
MANY = 10_000


class Cost(NamedTuple):
    """Of one pass."""

    wall: float
    cpu: float
    calls: int


class Provider:
    """Has a bar for every minute of every ticker, from `since` up to `until`."""

    def __init__(self, since: datetime) -> None:
        self.since = since
        self.until = NOON
        self.calls = 0
        self._texts: dict[tuple[int, int], bytes] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        ticker, first, last = self._asked(request)
        text = self._texts.get((first, last))
        if text is None:
            minutes = range(max(first, to_ms(self.since)), min(last, to_ms(self.until)), 60_000)
            bar = '{"v":1,"vw":1.5,"o":1.5,"c":1.5,"h":1.5,"l":1.5,"t":%d,"n":1}'
            results = ",".join(bar % ms for ms in minutes)
            head = f'"resultsCount":{len(minutes)},"status":"OK"' + (f',"results":[{results}]' if minutes else "")
            text = self._texts[first, last] = head.encode()
        return httpx.Response(200, content=b'{"ticker":"%s",%s}' % (ticker.encode(), text))

    def _asked(self, request: httpx.Request) -> tuple[str, int, int]:
        parts = request.url.path.split("/")
        return parts[4], int(parts[8]), int(parts[9]) + 60_000


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


async def passes(url: str, engine: str) -> None:
    """Print what passes over 45 and over 10,000 symbols cost."""
    for count, rounds in ((45, 9), (MANY, 2)):
        async with _worker(url, engine, count) as (sync, provider, clock):
            await sync.run_pass(lasts=timedelta(hours=1))
            await sync.run_pass(lasts=timedelta(hours=1))
            nothing, news = [], []
            for _ in range(rounds):
                clock.now += MINUTE
                nothing.append(await _cost(sync, provider))
                provider.until = clock.now + MINUTE
                clock.now += MINUTE
                news.append(await _cost(sync, provider))
        for what, costs in (("nothing new", nothing), ("one new bar each", news)):
            cpu = statistics.median(one.cpu for one in costs)
            wall = statistics.median(one.wall for one in costs)
            print(
                f"  pass over {count:,} symbols, {what}: {costs[-1].calls:,} calls, CPU {cpu:.2f} s, wall {wall:.2f} s"
            )
        print(f"    peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB", flush=True)


async def recheck(url: str, engine: str) -> None:
    """Print what a re-check of 30 days of 45 symbols costs, when nothing was corrected."""
    async with _worker(url, engine, 45) as (sync, provider, clock):
        await sync.run_pass(lasts=timedelta(hours=1))
        await sync.run_pass(lasts=timedelta(hours=1))
        clock.now += timedelta(days=1, minutes=1)
        provider.until = clock.now
        await sync.run_pass(lasts=timedelta(hours=1))
        await sync.mark_rechecks()
        cost = await _cost(sync, provider)
    bars = 45 * 30 * 1440
    print(
        f"  re-check of 45 symbols x 30 days, {bars:,} bars unchanged: {cost.wall:.1f} s,"
        f" CPU {cost.cpu:.1f} s, {bars / cost.wall:,.0f} bars/s",
        flush=True,
    )


async def _cost(sync: Sync, provider: Provider) -> Cost:
    provider.calls = 0
    wall, cpu = time.perf_counter(), time.process_time()
    await sync.run_pass(lasts=timedelta(hours=1))
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, provider.calls)


@asynccontextmanager
async def _worker(url: str, engine: str, count: int) -> AsyncIterator[tuple[Sync, Provider, Clock]]:
    settings = load(
        {
            "DATABASE_URL": url,
            "ENGINE": engine,
            "POLYGON_BASE_URL": "http://127.0.0.1:9",
            "POLYGON_API_KEY": "bench",
            "POLYGON_RATE_LIMIT": "unlimited",
            "RETENTION_1M": "off",
            "BACKFILL_DAYS": "31" if count == len(SEED) else "1",
        },
        None,
    )
    few = count == len(SEED)
    provider, clock = Provider(NOON.replace(second=0) - (timedelta(days=40) if few else 5 * MINUTE)), Clock()
    async with checked(url, engine) as db, httpx.AsyncClient(transport=httpx.MockTransport(provider)) as http:
        await _symbols(db, count)
        limiter = SlidingWindow(None)
        client = ProviderClient(http, base_url=settings.polygon_base_url, api_key="bench", limiter=limiter, clock=clock)
        yield Sync(db, settings, client, limiter, clock=clock), provider, clock


async def _symbols(db: Database, count: int) -> None:
    """As many coins; of the seeded instruments only where they are enough."""
    if count == len(SEED):
        return
    async with db.connection() as conn:
        await conn.execute("UPDATE market_data.instruments SET active = false")
        await conn.execute(
            "INSERT INTO market_data.instruments (symbol, ticker, asset_type, name)"
            " SELECT 'COIN' || n, 'X:COIN' || n || 'USD', 'crypto', 'Coin' FROM generate_series(1, %s) AS n",
            (count,),
        )
        await conn.execute(
            "INSERT INTO market_data.sync_state (symbol) SELECT symbol FROM market_data.instruments"
            " ON CONFLICT DO NOTHING"
        )


def reads_beside_a_backfill(url: str, engine: str, provider: str) -> None:
    """Print the API's p50 and p99 when idle and during a backfill, at one connection."""
    env = os.environ | {
        "DATABASE_URL": url,
        "ENGINE": engine,
        "POLYGON_BASE_URL": provider,
        "POLYGON_API_KEY": "bench",
        "POLYGON_RATE_LIMIT": "unlimited",
        "RETENTION_1M": "off",
        "BACKFILL_DAYS": "30",
        "PORT": "0",
        "LOG_LEVEL": "ERROR",
    }
    with _program(["serve"], env) as said, httpx.Client(base_url=said.split()[3], timeout=30) as api:
        _until(lambda: api.get("/api/candles/XRPUSD?timeframe=1h").json()["complete"])
        time.sleep(5)
        idle = _latencies(api, 8.0)
        api.post("/api/sync/sync-all", json={"backfill_days": 720}).raise_for_status()
        time.sleep(1)
        busy = _latencies(api, 8.0)
        left = api.get("/api/sync/status").json()["totals"]
    for what, found in (("idle", idle), ("during a backfill", busy)):
        p50, p99 = (statistics.quantiles(found, n=100)[place] * 1000 for place in (49, 98))
        print(f"  API, latest 500 candles of 1h, {what}: p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(found)} calls)")
    ratio = statistics.quantiles(busy, n=100)[98] / statistics.quantiles(idle, n=100)[98]
    print(f"  p99 during a backfill / idle: x {ratio:.1f} ({left['requests']:,} requests were still to do)", flush=True)


def _latencies(api: httpx.Client, seconds: float) -> list[float]:
    found = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        api.get("/api/candles/XRPUSD?timeframe=1h&limit=500").raise_for_status()
        found.append(time.perf_counter() - began)
        time.sleep(0.005)
    return found


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit("the worker did not get there")
        time.sleep(0.2)


@contextmanager
def _program(words: list[str], env: dict[str, str]) -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-m", "service", *words], env=env, stdout=subprocess.PIPE, text=True) as it:
        try:
            assert it.stdout is not None
            yield it.stdout.readline()
        finally:
            it.terminate()
            it.wait(20)


def child(what: str, url: str, engine: str, provider: str) -> None:
    """One measurement, in a process of its own."""
    match what:
        case "passes":
            asyncio.run(passes(url, engine))
        case "recheck":
            asyncio.run(recheck(url, engine))
        case _:
            reads_beside_a_backfill(url, engine, provider)
