"""What TimescaleDB does by itself: it drops what is too old, compresses what rests, and refreshes a second time."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

import msgspec
import psycopg
from psycopg import AsyncConnection, Connection

from service.coverage import Retention
from service.errors import DatabaseError
from service.timeframes import Timeframe

Kind = Literal["retention", "columnstore", "refresh"]

POLICIES_LOCK = 0x63616E646C68
"""Key of the advisory lock under which one process at a time changes policies."""
LOCK_TIMEOUT = "10s"
"""How long a change of the policies waits for other work."""
EVERY = timedelta(hours=12)
"""How often each policy runs."""
FIRST_RUN = timedelta(hours=1)
"""How long after it was made a policy runs first: time to take back a retention that would drop too much."""
APART = timedelta(minutes=5)
"""Each timeframe's policies first run this long after those of the finer one: a refresh reads what it refreshed."""
COMPRESSED_AFTER = timedelta(days=30)
"""The youngest that a bar is compressed; the re-checks may put it off further."""
REFRESH_FROM = timedelta(days=30)
"""How far back a refresh policy reaches at most."""
REFRESH_TO = timedelta(days=1)
"""A refresh policy leaves the last day to the service, which knows how far each symbol is."""
ABOVE_THE_FLOOR = timedelta(days=7 + 1)
"""A refresh policy stays this far inside the retention of the level it reads: a chunk and a margin."""
_PROCEDURES: Mapping[str, Kind] = {
    "policy_retention": "retention",
    "policy_compression": "columnstore",
    "policy_refresh_continuous_aggregate": "refresh",
}
_RELATIONS = [timeframe.table for timeframe in Timeframe]


class DatabaseJob(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the database does by itself, for a status page."""

    what: Kind
    relation: str
    """Such as candles_5m."""
    every: timedelta
    last_run_at: datetime | None
    """When it last began; None: never yet."""
    last_ok: bool | None
    """How that ended; None: never yet, or it has not ended."""
    next_run_at: datetime | None
    """None: it is paused."""
    setting: str
    """For people: `drop after 10 days`."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One policy; two that are equal do the same."""

    what: Kind
    relation: str
    since: timedelta | None
    """The age from which it acts on data; of a refresh, at which its window starts. None: not one of ours."""
    until: timedelta | None = None
    """Of a refresh: the age at which its window ends."""
    batch: int | None = None
    """Of a refresh: the buckets in one pass; 0: all of them, since between batches one can be skipped (issue 10221)."""

    def __str__(self) -> str:
        if self.what == "refresh":
            return f"refresh from {_age(self.since)} to {_age(self.until)} ago"
        return f"{'drop' if self.what == 'retention' else 'compress'} after {_age(self.since)}"


def wanted(retention: Retention, recheck_days: int) -> list[Policy]:
    """The policies that these settings ask for."""
    compressed_after = max(COMPRESSED_AFTER, timedelta(days=recheck_days))
    policies = [Policy(what="columnstore", relation=Timeframe.M1.table, since=compressed_after)]
    for timeframe in Timeframe:
        kept = retention.get(timeframe)
        if kept is not None:
            policies.append(Policy(what="retention", relation=timeframe.table, since=kept))
    for finer, timeframe in pairwise(Timeframe):
        kept = retention.get(finer)
        since = REFRESH_FROM if kept is None else min(REFRESH_FROM, kept - ABOVE_THE_FLOOR)
        # The engine takes no narrower window: it need not start with a bucket, and must hold a whole one.
        if since - REFRESH_TO >= 2 * timeframe.length:
            policies.append(Policy(what="refresh", relation=timeframe.table, since=since, until=REFRESH_TO, batch=0))
    return policies


def reconcile(conn: Connection[Any], retention: Retention, recheck_days: int) -> None:
    """Bring the database's policies to what the settings ask for, in one transaction; one that fits stays as it is.

    conn: in autocommit mode. DatabaseError where other work holds the tables for longer than a few seconds.
    """
    try:
        with conn.transaction():
            conn.execute("SELECT set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
            conn.execute("SELECT pg_advisory_xact_lock(%s)", (POLICIES_LOCK,))
            _enable_columnstore(conn)
            there, asked = _there(conn), wanted(retention, recheck_days)
            for job_id, policy in there.items():
                if policy not in asked:
                    conn.execute("SELECT delete_job(%s)", (job_id,))
            for policy in asked:
                if policy not in there.values():
                    _add(conn, policy)
    except psycopg.errors.LockNotAvailable as exc:
        raise DatabaseError(
            "retention, columnstore and refresh policies could not be set: other work holds the tables; try again"
        ) from exc


async def jobs(conn: AsyncConnection[Any]) -> list[DatabaseJob]:
    """Every policy on the six timeframes, whoever made it, finest timeframe first."""
    cursor = await conn.execute(_JOBS, {"relations": _RELATIONS, "procedures": list(_PROCEDURES)})
    return [
        DatabaseJob(
            what=_PROCEDURES[procedure],
            relation=relation,
            every=every,
            last_run_at=last_run_at,
            last_ok=last_ok,
            next_run_at=next_run_at,
            setting=str(_policy(procedure, relation, *config)),
        )
        for procedure, relation, every, last_run_at, last_ok, next_run_at, *config in await cursor.fetchall()
    ]


def _there(conn: Connection[Any]) -> dict[int, Policy]:
    rows = conn.execute(_POLICIES, {"relations": _RELATIONS, "procedures": list(_PROCEDURES)})
    return {job_id: _policy(*values) for job_id, *values in rows}


def _policy(
    procedure: str, relation: str, since: timedelta | None, until: timedelta | None, batch: int | None
) -> Policy:
    return Policy(what=_PROCEDURES[procedure], relation=relation, since=since, until=until, batch=batch)


def _enable_columnstore(conn: Connection[Any]) -> None:
    if conn.execute(_HAS_COLUMNSTORE).fetchone() == (False,):
        conn.execute(_ENABLE_COLUMNSTORE)


def _add(conn: Connection[Any], policy: Policy) -> None:
    conn.execute(
        _ADD[policy.what],
        {
            "relation": f"market_data.{policy.relation}",
            "since": policy.since,
            "until": policy.until,
            "batch": policy.batch,
            "every": EVERY,
            "first_run": FIRST_RUN + _RELATIONS.index(policy.relation) * APART,
        },
    )


def _age(age: timedelta | None) -> str:
    if age is None:
        return "any age"
    if age % timedelta(days=1):
        return str(age)
    return "1 day" if age.days == 1 else f"{age.days} days"


_HAS_COLUMNSTORE = """
    SELECT compression_enabled FROM timescaledb_information.hypertables
    WHERE hypertable_schema = 'market_data' AND hypertable_name = 'candles_1m'
"""
_ENABLE_COLUMNSTORE = """
    ALTER TABLE market_data.candles_1m SET (
        timescaledb.enable_columnstore,
        timescaledb.segmentby = 'symbol',
        timescaledb.orderby = 'ts DESC'
    )
"""
_POLICIES = """
    SELECT
        job_id,
        proc_name,
        hypertable_name,
        coalesce(config ->> 'drop_after', config ->> 'compress_after', config ->> 'start_offset')::interval,
        (config ->> 'end_offset')::interval,
        (config ->> 'buckets_per_batch')::int
    FROM timescaledb_information.jobs
    WHERE hypertable_schema = 'market_data' AND hypertable_name = ANY(%(relations)s) AND proc_name = ANY(%(procedures)s)
    ORDER BY job_id
"""
_JOBS = """
    SELECT
        j.proc_name,
        j.hypertable_name,
        j.schedule_interval,
        CASE WHEN isfinite(s.last_run_started_at) THEN s.last_run_started_at END,
        s.last_run_status = 'Success',
        CASE WHEN isfinite(s.next_start) THEN s.next_start END,
        coalesce(j.config ->> 'drop_after', j.config ->> 'compress_after', j.config ->> 'start_offset')::interval,
        (j.config ->> 'end_offset')::interval,
        (j.config ->> 'buckets_per_batch')::int
    FROM timescaledb_information.jobs AS j
    JOIN timescaledb_information.job_stats AS s ON s.job_id = j.job_id
    WHERE j.hypertable_schema = 'market_data'
        AND j.hypertable_name = ANY(%(relations)s)
        AND j.proc_name = ANY(%(procedures)s)
    ORDER BY array_position(%(relations)s, j.hypertable_name::text), j.proc_name, j.job_id
"""
_ADD: Mapping[Kind, str] = {
    "retention": """
        SELECT add_retention_policy(
            %(relation)s::regclass,
            drop_after => %(since)s::interval,
            schedule_interval => %(every)s::interval,
            initial_start => now() + %(first_run)s::interval
        )
    """,
    "columnstore": """
        CALL add_columnstore_policy(
            %(relation)s::regclass,
            after => %(since)s::interval,
            schedule_interval => %(every)s::interval,
            initial_start => now() + %(first_run)s::interval
        )
    """,
    "refresh": """
        SELECT add_continuous_aggregate_policy(
            %(relation)s::regclass,
            start_offset => %(since)s::interval,
            end_offset => %(until)s::interval,
            schedule_interval => %(every)s::interval,
            initial_start => now() + %(first_run)s::interval,
            buckets_per_batch => %(batch)s::int
        )
    """,
}
