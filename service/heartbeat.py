"""What the worker says of itself in the database, for those who ask whether it lives and how it does."""

import os
import socket
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from psycopg import AsyncConnection

ProviderState = Literal["ok", "unreachable", "unauthorized"]

SILENT_AFTER = timedelta(seconds=15)
"""A worker that said nothing for so long is not there."""


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """The process that keeps the database up to date, as it said last. Instants are aware UTC."""

    host: str
    pid: int
    started_at: datetime
    beat_at: datetime
    """When it last said that it lives; it does so every five seconds."""
    provider: ProviderState
    provider_message: str | None
    """The last failure's own words; None while all is well."""
    provider_since: datetime | None
    """Since when the provider is as it is."""
    paused_until: datetime | None
    """No call is made before."""
    clock_ahead: timedelta | None
    """How far its machine's clock is ahead of the provider's."""


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """One of the worker's jobs. Instants are aware UTC."""

    name: str
    every: str
    """How often it is due, in words."""
    started_at: datetime | None
    """Of the last run; None: it never ran."""
    finished_at: datetime | None
    """None while it runs."""
    result: Literal["ok", "failed"] | None
    message: str | None
    """What the last run did, or why it failed."""
    next_run_at: datetime | None


async def begin(conn: AsyncConnection[Any], now: datetime) -> None:
    """From now on this process is the worker; what the last one said of its jobs stays."""
    await conn.execute(
        "INSERT INTO market_data.worker (host, pid, started_at, beat_at)"
        " VALUES (%(host)s, %(pid)s, %(now)s, %(now)s)"
        " ON CONFLICT (only_row) DO UPDATE SET host = excluded.host, pid = excluded.pid,"
        " started_at = excluded.started_at, beat_at = excluded.beat_at,"
        " provider = 'ok', provider_message = NULL, provider_since = NULL, paused_until = NULL",
        {"host": socket.gethostname(), "pid": os.getpid(), "now": now},
    )


async def beat(conn: AsyncConnection[Any], now: datetime, clock_ahead: timedelta | None) -> None:
    """The worker lives."""
    await conn.execute("UPDATE market_data.worker SET beat_at = %s, clock_ahead = %s", (now, clock_ahead))


async def provider_is(
    conn: AsyncConnection[Any], state: ProviderState, message: str | None, now: datetime, paused_until: datetime | None
) -> None:
    """How the provider answers; `since` moves only when that changes."""
    await conn.execute(
        "UPDATE market_data.worker SET"
        " provider_since = CASE WHEN provider = %(state)s THEN provider_since ELSE %(now)s END,"
        " provider = %(state)s, provider_message = %(message)s, paused_until = %(paused_until)s",
        {"state": state, "message": message, "now": now, "paused_until": paused_until},
    )


async def worker(conn: AsyncConnection[Any]) -> Worker | None:
    """The worker that said something last; None: there never was one."""
    cursor = await conn.execute(
        "SELECT host, pid, started_at, beat_at, provider, provider_message, provider_since, paused_until, clock_ahead"
        " FROM market_data.worker"
    )
    row = await cursor.fetchone()
    return None if row is None else Worker(**dict(zip(Worker.__struct_fields__, row, strict=True)))


async def refusal(conn: AsyncConnection[Any], now: datetime) -> str | None:
    """Why the worker that lives calls nobody until a person corrects it (its key is refused); None: it does call."""
    one = await worker(conn)
    if one is None or one.provider != "unauthorized" or now - one.beat_at > SILENT_AFTER:
        return None
    return f"the worker that runs: {one.provider_message}"


async def jobs(conn: AsyncConnection[Any]) -> Sequence[JobState]:
    """The worker's jobs by name."""
    cursor = await conn.execute(
        "SELECT name, every, started_at, finished_at, result, message, next_run_at FROM market_data.jobs ORDER BY name"
    )
    return [JobState(**dict(zip(JobState.__struct_fields__, row, strict=True))) for row in await cursor.fetchall()]


async def job_scheduled(conn: AsyncConnection[Any], name: str, every: str, next_run_at: datetime | None) -> None:
    """A job exists, and is due then."""
    await conn.execute(
        "INSERT INTO market_data.jobs (name, every, next_run_at) VALUES (%(name)s, %(every)s, %(next)s)"
        " ON CONFLICT (name) DO UPDATE SET every = excluded.every, next_run_at = excluded.next_run_at",
        {"name": name, "every": every, "next": next_run_at},
    )


async def job_started(conn: AsyncConnection[Any], name: str, now: datetime) -> None:
    """A run of a job begins."""
    await conn.execute(
        "UPDATE market_data.jobs SET started_at = %s, finished_at = NULL, result = NULL, message = NULL"
        " WHERE name = %s",
        (now, name),
    )


async def job_finished(
    conn: AsyncConnection[Any],
    name: str,
    now: datetime,
    *,
    outcome: tuple[Literal["ok", "failed"], str],
    next_run_at: datetime | None,
) -> None:
    """A run of a job is over; outcome: how, and in words what it did."""
    await conn.execute(
        "UPDATE market_data.jobs SET finished_at = %s, result = %s, message = %s, next_run_at = %s WHERE name = %s",
        (now, *outcome, next_run_at, name),
    )
