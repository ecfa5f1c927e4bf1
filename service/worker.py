"""The process that keeps every active symbol up to date: it holds the fetcher's lock, or stands by for it."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import psycopg

from service import heartbeat, ledger
from service.backfill import limiter_of
from service.db.connect import Database
from service.errors import CandlewickError, first_of
from service.lock import fetching_alone, guard
from service.provider.client import open_client
from service.scheduler import Scheduler
from service.settings import Settings
from service.sync import Sync
from service.timeframes import utc_now

log = logging.getLogger(__name__)

SHORTEST_REST, LONGEST_REST = 1.0, 10.0
"""Seconds before the next try when the database is gone, twice as long each time."""


async def work(db: Database, settings: Settings, clock: Callable[[], datetime] = utc_now) -> None:
    """Work until cancelled, which leaves whole pieces only. A database that goes away is waited for."""
    settings.require_api_key()
    rest = SHORTEST_REST
    while True:
        began = clock()
        try:
            await _alone(db, settings, clock)
        except (psycopg.Error, CandlewickError, OSError) as exc:
            if clock() - began > timedelta(minutes=1):
                rest = SHORTEST_REST
            log.warning("the worker begins anew in %.0f s: %s", rest, " ".join(str(exc).split()))
        await asyncio.sleep(rest)
        rest = min(rest * 2, LONGEST_REST)


async def _alone(db: Database, settings: Settings, clock: Callable[[], datetime]) -> None:
    """From getting the lock to losing it."""
    told = False

    async def waiting() -> bool:
        nonlocal told
        if not told:
            log.info("another process fetches for this database: standing by")
            told = True
        return True

    async with fetching_alone(db, waiting) as lock:
        if lock is None:
            return
        async with db.connection() as conn:
            await heartbeat.begin(conn, clock())
            history = await ledger.recent_calls(conn, clock() - timedelta(minutes=1))
        limiter = limiter_of(db, settings, history)
        key = settings.require_api_key()
        async with open_client(settings.polygon_base_url, key, limiter=limiter, clock=clock) as client:
            sync = Sync(db, settings, client, limiter, clock=clock)
            scheduler = Scheduler(db, clock)
            scheduler.every_minute("sync", sync.run_pass)
            scheduler.every_hour("recheck", sync.mark_rechecks)
            scheduler.every_hour("history", sync.mark_clipped)
            log.info("this process keeps the database up to date from now on")

            async def heard() -> None:
                sync.asked = True
                scheduler.trigger("sync")

            async def beat() -> None:
                await heartbeat.beat(lock, clock(), client.clock_ahead)

            await lock.execute(f"LISTEN {ledger.REQUESTS}")
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(guard(lock, beat, heard))
                    group.create_task(scheduler.run())
            except BaseExceptionGroup as errors:
                raise first_of(errors) from errors
