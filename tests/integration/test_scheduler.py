"""The loop that starts the worker's jobs, with jobs of the test's own; the calendar's clock is moved by hand."""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import psycopg
import pytest

from service import heartbeat, scheduler
from service.db.connect import Database
from service.db.preflight import checked
from service.errors import DatabaseError
from service.heartbeat import JobState
from service.scheduler import Scheduler
from service.timeframes import utc_now

pytestmark = pytest.mark.parametrize("engine", ["plain"], indirect=True)
AWAITED = 20.0


@pytest.fixture
async def db(database: str, engine: str) -> AsyncIterator[Database]:
    """Where the jobs tell what they do."""
    async with checked(database, engine) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed jobs are tried again at once, and what is due is looked for all the time."""
    monkeypatch.setattr(scheduler, "SHORTEST_RETRY", 0.05)
    monkeypatch.setattr(scheduler, "LONGEST_WAIT", 0.01)


@pytest.fixture
def calendar_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Set the clock by which jobs are planned: aware UTC, and it stands still."""
    present = [datetime.now(UTC)]

    class Moved(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Moved":
            here = present[0].astimezone(tz)
            return cls(*(here if tz else here.replace(tzinfo=None)).timetuple()[:6], tzinfo=tz)

    names = {name: getattr(dt, name) for name in ("timedelta", "time", "date", "timezone")}
    monkeypatch.setattr("schedule.datetime", SimpleNamespace(datetime=Moved, **names))
    return lambda at: present.__setitem__(0, at)


class Job:
    """Counts its runs, and how many there were at once; lasts until it is let go."""

    def __init__(self, *, lasts: bool = False, fails: int = 0) -> None:
        self.runs = 0
        self.at_once = 0
        self.most_at_once = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        self._lasts = lasts
        self._fails = fails

    async def __call__(self) -> str:
        self.runs += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self._lasts:
                await self.go.wait()
            if self.runs <= self._fails:
                raise DatabaseError(f"attempt {self.runs}\nfailed")
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1
        return f"run {self.runs}"


@asynccontextmanager
async def _looping(loop: Scheduler) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(loop.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + AWAITED
    while not happened():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def _until_told(db: Database, name: str, message: str | None) -> JobState:
    deadline = time.monotonic() + AWAITED
    while True:
        async with db.connection() as conn:
            found = [one for one in await heartbeat.jobs(conn) if one.name == name and one.started_at is not None]
        if found and found[0].message == message:
            return found[0]
        assert time.monotonic() < deadline, f"{name} does not tell {message!r} but {found}"
        await asyncio.sleep(0.02)


async def test_a_job_never_overlaps_itself(db: Database, calendar_clock: Callable[[datetime], None]) -> None:
    """However slow it is and however often it is due meanwhile; others run on beside it."""
    slow, quick = Job(lasts=True), Job()
    loop = Scheduler(db, utc_now)
    loop.every_minute("slow", slow)
    loop.every_minute("quick", quick)
    now = datetime(2026, 3, 2, 10, 0, 30, tzinfo=UTC)
    calendar_clock(now)
    async with _looping(loop):
        for minute in range(1, 4):
            await _until(lambda minute=minute: quick.runs == minute, f"run {minute}")  # type: ignore[misc]
            calendar_clock(now + timedelta(minutes=minute))
        await _until(lambda: quick.runs == 4, "the last run")
        assert (slow.runs, slow.most_at_once) == (1, 1)
        slow.go.set()
        await _until_told(db, "slow", "run 1")
        calendar_clock(now + timedelta(minutes=4))
        await _until(lambda: slow.runs == 2, "it runs again")
        assert slow.most_at_once == 1


async def test_a_failing_job_is_tried_again_soon_and_stops_nothing(db: Database) -> None:
    """Three failures, foreseen or not, then success: long before the next minute; each is told in one line."""
    failing, other = Job(fails=3), Job()
    loop = Scheduler(db, utc_now)
    loop.every_minute("failing", failing)
    loop.every_hour("other", other)
    async with _looping(loop) as task:
        told = await _until_told(db, "failing", "run 4")
        assert (told.result, failing.runs, other.runs) == ("ok", 4, 1)
        assert not task.done()


async def test_what_nobody_foresaw_ends_nothing_either(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a job is logged with its traceback, and the job is tried again."""
    runs = 0

    async def buggy() -> str:
        nonlocal runs
        runs += 1
        return str(1 // 0)

    loop = Scheduler(db, utc_now)
    loop.every_minute("buggy", buggy)
    async with _looping(loop) as task:
        await _until(lambda: runs >= 3, "it is tried again")
        assert not task.done()
    assert "job buggy failed: ZeroDivisionError: integer division or modulo by zero" in caplog.text
    assert "Traceback" in caplog.text


async def test_failures_do_not_multiply_the_tries(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failed run is followed by one other, also where a trigger came in between."""
    monkeypatch.setattr(scheduler, "SHORTEST_RETRY", 0.3)
    monkeypatch.setattr(scheduler, "LONGEST_RETRY", 0.3)
    failing = Job(fails=10_000)
    loop = Scheduler(db, utc_now)
    loop.every_hour("failing", failing)
    async with _looping(loop):
        for runs in range(1, 8):
            await _until(lambda runs=runs: failing.runs >= runs and not failing.at_once, "a run")  # type: ignore[misc]
            loop.trigger("failing")
        before = failing.runs
        await asyncio.sleep(1.0)
        assert failing.runs - before <= 6, "one a 0.3 s and the last trigger, not one for each earlier failure"


async def test_each_run_is_told_in_the_database(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it began and ended, how, what it said, and when the next one is due; a failure with its reason."""
    monkeypatch.setattr(scheduler, "SHORTEST_RETRY", 60.0)
    fine, failing = Job(lasts=True), Job(fails=10_000)
    began = utc_now()
    loop = Scheduler(db, utc_now)
    loop.every_minute("fine", fine)
    loop.every_hour("failing", failing)
    async with _looping(loop):
        runs = await _until_told(db, "fine", None)
        assert runs.started_at is not None
        assert began <= runs.started_at <= utc_now()
        assert (runs.every, runs.finished_at, runs.result) == ("minute", None, None)
        fine.go.set()
        done = await _until_told(db, "fine", "run 1")
        assert done.finished_at is not None
        assert done.next_run_at is not None
        assert (done.result, done.started_at) == ("ok", runs.started_at)
        assert runs.started_at <= done.finished_at <= utc_now()
        assert timedelta() < done.next_run_at - began <= timedelta(seconds=122)
        assert (done.next_run_at.second, done.next_run_at.tzinfo is not None) == (2, True)
        lost = await _until_told(db, "failing", "DatabaseError: attempt 1 failed")
        assert (lost.every, lost.result) == ("hour", "failed")
        assert lost.next_run_at is not None
        assert (lost.next_run_at.minute, lost.next_run_at.second) == (0, 0)


async def test_a_trigger_lets_a_job_run_at_once_or_once_more(db: Database) -> None:
    """Idle, it starts; while it runs, many triggers are one run more, right after: what they are for may be new."""
    job = Job(lasts=True)
    loop = Scheduler(db, utc_now)
    loop.every_hour("job", job)
    async with _looping(loop):
        await _until(lambda: job.at_once == 1, "the first run")
        for _ in range(3):
            loop.trigger("job")
        assert job.runs == 1
        job.go.set()
        await _until_told(db, "job", "run 2")
        await asyncio.sleep(0.2)
        assert job.runs == 2
        loop.trigger("job")
        await _until(lambda: job.runs == 3, "idle, it starts")
        assert job.most_at_once == 1


async def test_cancelling_ends_running_jobs_within_a_second(db: Database) -> None:
    """Also one that is about to be tried again: nothing runs afterwards."""
    running, failing = Job(lasts=True), Job(fails=10_000)
    loop = Scheduler(db, utc_now)
    loop.every_minute("running", running)
    loop.every_minute("failing", failing)
    async with _looping(loop) as task:
        await _until(lambda: running.at_once == 1 and failing.runs >= 2, "both run")
        began = time.monotonic()
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert time.monotonic() - began < 1.0
        assert task.cancelled()
    assert (running.cancelled, running.at_once) == (1, 0)
    runs = failing.runs
    loop.trigger("running")
    await asyncio.sleep(0.4)
    assert (failing.runs, running.runs) == (runs, 1)


async def test_a_clock_that_was_set_back_delays_nothing_for_long(
    db: Database, calendar_clock: Callable[[datetime], None]
) -> None:
    """What was planned by the wrong clock is planned anew, not waited for."""
    job = Job()
    loop = Scheduler(db, utc_now)
    loop.every_minute("job", job)
    wrong, right = (datetime(2026, 3, day, 10, 0, 30, tzinfo=UTC) for day in (3, 2))
    calendar_clock(wrong)
    async with _looping(loop):
        await _until(lambda: job.runs == 1, "the first run")
        calendar_clock(right)
        await asyncio.sleep(0.2)
        calendar_clock(right + timedelta(seconds=40))
        await _until(lambda: job.runs == 2, "the next minute by the right clock")


async def test_a_clock_that_jumps_ahead_costs_one_run(db: Database, calendar_clock: Callable[[datetime], None]) -> None:
    """As after a day's sleep of the machine: what was missed meanwhile is one run, at once."""
    job = Job()
    loop = Scheduler(db, utc_now)
    loop.every_minute("job", job)
    now = datetime(2026, 3, 2, 10, 0, 30, tzinfo=UTC)
    calendar_clock(now)
    async with _looping(loop):
        await _until(lambda: job.runs == 1, "the first run")
        calendar_clock(now + timedelta(days=1))
        await _until(lambda: job.runs == 2, "it runs at once")
        await asyncio.sleep(0.3)
        assert job.runs == 2


async def test_a_database_that_is_away_keeps_no_job_from_running(database: str, engine: str) -> None:
    """What they do cannot be told then, and that is all."""
    job = Job()
    closed = checked(database, engine)
    closed.pool.timeout = 0.05
    loop = Scheduler(closed, utc_now)
    loop.every_minute("job", job)
    with pytest.raises(psycopg.OperationalError):
        async with closed.connection():
            pass
    async with _looping(loop) as task:
        await _until(lambda: job.runs == 1, "it runs")
        assert not task.done()
