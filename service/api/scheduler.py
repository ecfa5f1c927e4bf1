"""GET /scheduler/status: what runs by itself, in the worker and in the database, and how it went."""

from datetime import timedelta
from typing import Any

import msgspec
from litestar import Request, get

from service import heartbeat, ledger, tracking
from service.api import parameters
from service.api.answers import BAD, DOWN, answer
from service.api.serving import Serving
from service.db.policies import DatabaseJob
from service.entitlements import Entitlement
from service.heartbeat import JobState, Worker
from service.reasons import alive
from service.status import snapshot

WINDOW = timedelta(seconds=60)
"""In which the plan counts calls."""


class WorkerAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The process that keeps the database up to date, as it said last. Every instant is Unix ms UTC."""

    alive: bool
    """Whether it said anything in the last half minute."""
    host: str
    pid: int
    started_at: int
    beat_at: int
    """When it last said that it lives."""
    provider: str
    """How the provider answers: ok, unreachable or unauthorized."""
    provider_message: str | None
    provider_since: int | None
    paused_until: int | None
    """No call is made before."""
    clock_ahead_ms: int | None
    """How far its machine's clock is ahead of the provider's; null: not known."""


class JobAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One of the worker's jobs. Every instant is Unix ms UTC."""

    name: str
    every: str
    """How often it is due."""
    started_at: int | None
    """Of the last run; null: it never ran."""
    finished_at: int | None
    """null while it runs."""
    seconds: float | None
    """How long the last run took; null while it runs."""
    result: str | None
    """ok or failed; null while it runs."""
    message: str | None
    """What the last run did, or why it failed."""
    next_run_at: int | None


class RateAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The budget of calls."""

    limit: int | None
    """POLYGON_RATE_LIMIT, calls a minute; null: unlimited."""
    used: int | None
    """Calls of the last 60 seconds; null: they are not counted where there is no limit."""


class PlanAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider's plan gives of an asset class, as its answers showed."""

    asset_type: str
    kind: str
    """real-time, delayed or end-of-day."""
    delay_seconds: int
    """How late the newest bar of a delayed class is."""
    seen_at: int | None
    """When an answer last showed it, Unix ms UTC."""


class DatabaseJobAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the database does by itself. Every instant is Unix ms UTC."""

    what: str
    """retention, columnstore or refresh."""
    relation: str
    setting: str
    """What it does: `drop after 1825 days`."""
    every_seconds: int
    last_run_at: int | None
    last_ok: bool | None
    """How the last run ended; null: none has yet."""
    next_run_at: int | None
    """null: it is paused."""


class SchedulerAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What runs by itself. Every instant is Unix ms UTC."""

    worker: WorkerAnswer | None
    """null: there never was one."""
    jobs: list[JobAnswer]
    rate: RateAnswer
    plan: list[PlanAnswer]
    """By asset class; one that is not recognised yet is absent."""
    database: str
    """How long it keeps what."""
    database_jobs: list[DatabaseJobAnswer]


@get(
    "/scheduler/status",
    operation_id="getSchedulerStatus",
    summary="What runs by itself, and how it went",
    tags=["operation"],
    responses={400: BAD, 503: DOWN},
)
async def get_scheduler_status(request: Request[Any, Any, Any]) -> SchedulerAnswer:
    """The worker and its jobs, the budget of calls, what is recognised of the plan, and the database's own jobs."""
    parameters.check(request.query_params.dict(), ())
    serving: Serving = request.app.state.serving
    now, limit = serving.clock(), serving.settings.polygon_rate_limit
    async with serving.db.connection() as conn, snapshot(conn):
        worker = await heartbeat.worker(conn)
        jobs = await heartbeat.jobs(conn)
        calls = await ledger.recent_calls(conn, now - WINDOW)
        plan = await tracking.entitlements(conn)
        policies = await serving.db.engine.jobs(conn)
    return SchedulerAnswer(
        worker=None if worker is None else _worker(worker, alive=alive(worker, now)),
        jobs=[_job(one) for one in jobs],
        rate=RateAnswer(limit=limit, used=None if limit is None else len(calls)),
        plan=[_plan(asset_type, one) for asset_type, one in sorted(plan.items())],
        database=serving.db.engine.keeps(serving.settings.retention),
        database_jobs=[_policy(one) for one in policies],
    )


def _worker(one: Worker, *, alive: bool) -> WorkerAnswer:
    ahead = None if one.clock_ahead is None else round(one.clock_ahead / timedelta(milliseconds=1))
    return answer(WorkerAnswer, one, alive=alive, clock_ahead_ms=ahead)


def _job(one: JobState) -> JobAnswer:
    took = one.finished_at - one.started_at if one.started_at and one.finished_at else None
    return answer(JobAnswer, one, seconds=None if took is None else round(took.total_seconds(), 3))


def _plan(asset_type: str, one: Entitlement) -> PlanAnswer:
    return answer(PlanAnswer, one, asset_type=asset_type, delay_seconds=round(one.delay.total_seconds()))


def _policy(one: DatabaseJob) -> DatabaseJobAnswer:
    return answer(DatabaseJobAnswer, one, every_seconds=round(one.every.total_seconds()))
