"""Makes a past range complete: what is wanted and not covered is fetched, by one process a database."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import AsyncConnection

from service import coverage, ledger
from service.db.connect import FETCHER_LOCK, Database
from service.errors import DatabaseError, UsageError
from service.pipeline import Pipeline
from service.plan import Plan, Summary, Watcher
from service.provider.client import open_client
from service.provider.ratelimit import SlidingWindow
from service.ranges import Range, Ranges
from service.settings import Settings
from service.timeframes import Timeframe, utc_now

RETRY_AFTER = timedelta(minutes=5)
LOCK_CHECK_SECONDS = 5.0


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
    async with db.connection() as conn:
        chosen = await ledger.ledgers(conn, symbols)
        await ledger.want(conn, [one.symbol for one in chosen], asked)
    async with _sole_fetcher(db, watcher) as lock:
        now = clock()
        async with db.connection() as conn:
            ledgers = await ledger.ledgers(conn, [one.symbol for one in chosen])
            history = await ledger.recent_calls(conn, now - timedelta(minutes=1))
            await db.engine.refresh(conn, settings.retention, now)
        slices = coverage.plan(ledgers, Ranges.of(asked.start, min(asked.end, coverage.minute_floor(now))))
        plan = Plan(asked=asked, ledgers=tuple(ledgers), slices=tuple(slices), rate_limit=settings.polygon_rate_limit)
        watcher.planned(plan)
        limiter = _limiter(db, settings, history)
        async with open_client(settings.polygon_base_url, key, limiter=limiter, clock=clock) as client:
            pipeline = Pipeline(db, settings, client, slices, watcher=watcher, clock=clock)
            try:
                async with asyncio.TaskGroup() as group:
                    guard = group.create_task(_guard(lock))
                    await pipeline.go()
                    guard.cancel()
            except BaseExceptionGroup as errors:
                raise _first(errors) from errors
            await _note_failures(db, pipeline.failures, clock() + RETRY_AFTER)
            return Summary(
                stored=pipeline.total,
                requests=client.calls,
                seconds=time.monotonic() - began,
                failures=pipeline.failures,
            )


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
        async with db.connection() as conn:
            await ledger.record_call(conn, at, timedelta(minutes=2))

    return SlidingWindow(settings.polygon_rate_limit, history=history, record=record)


@asynccontextmanager
async def _sole_fetcher(db: Database, watcher: Watcher) -> AsyncIterator[AsyncConnection[Any]]:
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
        yield conn


async def _guard(lock: AsyncConnection[Any]) -> None:
    """End the run when the connection that holds the lock is lost: another process may be calling by then."""
    while True:
        await asyncio.sleep(LOCK_CHECK_SECONDS)
        try:
            await lock.execute("SELECT 1")
        except psycopg.Error as exc:
            raise DatabaseError(
                "the connection that holds the right to call the provider was lost: run the same command again"
            ) from exc


async def _note_failures(db: Database, failures: dict[str, str], next_attempt_at: datetime) -> None:
    """Last, since a piece that works clears what an earlier one of its symbol left."""
    if failures:
        async with db.connection() as conn:
            for symbol, reason in failures.items():
                await ledger.note_failure(conn, symbol, reason, next_attempt_at)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the run, without the tasks that fell with it."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
