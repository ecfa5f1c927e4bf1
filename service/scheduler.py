"""The light loop that starts the worker's jobs: each in its turn, never two runs of one, whatever fails."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import psycopg
import schedule

from service import heartbeat
from service.db.connect import Database
from service.errors import CandlewickError

log = logging.getLogger(__name__)

LONGEST_WAIT = 1.0
"""Seconds between two looks at what is due."""
LONGEST_IDLE = 120.0
"""Seconds that can lie between two runs, since something is due every minute."""
SHORTEST_RETRY, LONGEST_RETRY = 5.0, 60.0
"""Seconds after which a job that failed is tried again, twice as long each time."""


class _Job:
    def __init__(self, name: str, every: str, work: Callable[[], Awaitable[str]]) -> None:
        self.name = name
        self.every = every
        self.work = work
        self.running: asyncio.Task[None] | None = None
        self.planned: schedule.Job | None = None
        self.failures = 0
        self.retry: asyncio.TimerHandle | None = None
        self.again = False
        """Wanted once more while it ran."""

    @property
    def next_run_at(self) -> datetime | None:
        """Aware UTC; the library counts in the machine's own zone, and naively."""
        at = self.planned.next_run if self.planned is not None else None
        return None if at is None else at.astimezone(UTC)


class Scheduler:
    """Jobs on one event loop; `run` ends only by cancellation, which ends the running jobs too."""

    def __init__(self, db: Database, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._clock = clock
        self._schedule = schedule.Scheduler()
        self._jobs: dict[str, _Job] = {}
        self._ended = False

    def every_minute(self, name: str, work: Callable[[], Awaitable[str]]) -> None:
        """Two seconds after each minute: by then the provider has the bar that ended with it."""
        self._jobs[name] = _Job(name, "minute", work)

    def every_hour(self, name: str, work: Callable[[], Awaitable[str]]) -> None:
        """At the beginning of each hour."""
        self._jobs[name] = _Job(name, "hour", work)

    def trigger(self, name: str) -> None:
        """Let a job run as soon as it does not run already."""
        self._jobs[name].again = True
        self._start(name)

    async def run(self) -> None:
        """Start every job now, and then whenever it is due."""
        self._plan()
        try:
            for job in self._jobs.values():
                await self._tell(heartbeat.job_scheduled, job.name, job.every, job.next_run_at)
            self._schedule.run_all()
            while True:
                idle = self._schedule.idle_seconds or 0.0
                if idle > LONGEST_IDLE:  # the clock was set back: what was planned lies too far ahead
                    self._plan()
                await asyncio.sleep(min(max(idle, 0.0), LONGEST_WAIT))
                self._schedule.run_pending()
        finally:
            self._ended = True
            running = [job.running for job in self._jobs.values() if job.running is not None]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _plan(self) -> None:
        self._schedule.clear()
        for job in self._jobs.values():
            every = self._schedule.every()
            planned = every.minute.at(":02") if job.every == "minute" else every.hour.at(":00")
            job.planned = planned.do(self._start, job.name)

    def _start(self, name: str) -> None:
        job = self._jobs[name]
        if not self._ended and (job.running is None or job.running.done()):
            job.again = False
            if job.retry is not None:
                job.retry.cancel()
            job.running = asyncio.get_running_loop().create_task(self._run(job), name=name)

    async def _run(self, job: _Job) -> None:
        """One run; its failure is logged, noted and tried again, and ends nothing else."""
        await self._tell(heartbeat.job_started, job.name, self._clock())
        result: Literal["ok", "failed"] = "ok"
        try:
            message = await job.work()
            job.failures = 0
            log.log(logging.DEBUG if job.every == "minute" else logging.INFO, "%s: %s", job.name, message)
        except Exception as exc:
            result, message = "failed", " ".join(f"{type(exc).__name__}: {exc}".split())
            expected = isinstance(exc, (CandlewickError, psycopg.Error, OSError))
            log.log(logging.ERROR, "job %s failed: %s", job.name, message, exc_info=None if expected else exc)
            job.failures = min(job.failures + 1, 10)
        await self._tell(
            partial(heartbeat.job_finished, outcome=(result, message), next_run_at=job.next_run_at),
            job.name,
            self._clock(),
        )
        if job.again or result == "failed":
            pause = 0.0 if job.again else min(SHORTEST_RETRY * 2 ** (job.failures - 1), LONGEST_RETRY)
            job.retry = asyncio.get_running_loop().call_later(pause, self._start, job.name)

    async def _tell(self, say: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Note it in the database, for the status; a database that is away does not keep a job from running."""
        try:
            async with self._db.connection() as conn:
                await say(conn, *arguments)
        except (psycopg.Error, CandlewickError) as exc:
            log.warning("what the jobs do cannot be noted: %s", " ".join(str(exc).split()))
