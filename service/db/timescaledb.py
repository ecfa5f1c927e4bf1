"""The engine that Candlewick is for: continuous aggregates over a hypertable, refreshed a slice at a time."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import psycopg
from psycopg import AsyncConnection, Connection

from service import coverage
from service.coverage import Retention
from service.db import policies, purge
from service.db.conflicts import CONFLICTS
from service.errors import DatabaseError
from service.ranges import Range, Ranges
from service.timeframes import AGGREGATED, Timeframe

WEEK = timedelta(days=7)
"""Stale ranges closer than this are joined: what lies between costs next to nothing."""
BATCH = {
    Timeframe.M5: WEEK,
    Timeframe.M15: WEEK,
    Timeframe.H1: coverage.GRID,
    Timeframe.H4: coverage.GRID,
    Timeframe.D1: coverage.GRID,
}
"""How much time one call of a refresh spans: the cheapest measured. Finer levels sort less in small parts; for the
coarser ones, whose rows are few, planning through the levels below is the cost (4h: 65 ms, 1d: 120 ms a call)."""
AT_MOST_BEHIND = timedelta(days=1)
"""A symbol further behind than this no longer holds back what the refresh materialises."""
OLDEST = (2, 28)
"""The first release whose refresh can be told not to cut a window into batches of its own."""
NOT_PRELOADED = (
    "the timescaledb extension is installed but not loaded: add it to shared_preload_libraries "
    "in postgresql.conf and restart PostgreSQL"
)
_TRIES = 8


class TimescaleDB:
    """Continuous aggregates over a hypertable: what is written is noted, and refreshed a slice at a time."""

    name = "timescaledb"

    def prepare(self, conn: Connection[Any]) -> None:
        """Create the extension if the server offers it."""
        offered = conn.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'").fetchone()
        if not offered:
            raise DatabaseError(
                "this PostgreSQL has no timescaledb extension: install TimescaleDB Community there, "
                "or set ENGINE=plain to do without it"
            )
        try:
            conn.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        except psycopg.errors.InsufficientPrivilege as exc:
            raise DatabaseError(
                "this user may not create the timescaledb extension: run CREATE EXTENSION timescaledb as a superuser"
            ) from exc
        except psycopg.Error as exc:
            if "preload" in str(exc):
                raise DatabaseError(NOT_PRELOADED) from exc
            raise
        self.verify(conn)

    def verify(self, conn: Connection[Any]) -> str:
        """Extension there, preloaded, new enough, Community edition."""
        row = conn.execute(
            "SELECT extversion, current_setting('timescaledb.license', true), current_setting('server_version')"
            " FROM pg_extension WHERE extname = 'timescaledb'"
        ).fetchone()
        if row is None:
            raise DatabaseError("this database has no timescaledb extension: run `candlewick migrate`")
        version, license_, server = row
        if license_ is None:
            raise DatabaseError(NOT_PRELOADED)
        if license_ != "timescale":
            raise DatabaseError(
                f"this server runs TimescaleDB's {license_} edition, which has no continuous aggregates: "
                "use the Community edition (timescaledb.license = 'timescale'), or set ENGINE=plain"
            )
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise DatabaseError(f"TimescaleDB {version} is too old: Candlewick needs {oldest} or newer")
        return f"TimescaleDB {version} on PostgreSQL {server.split()[0]}"

    def floors(self, retention: Retention, now: datetime) -> dict[Timeframe, datetime | None]:
        """Retention's midnights."""
        return {timeframe: coverage.floor(now, retention.get(timeframe)) for timeframe in Timeframe}

    async def derive(self, conn: AsyncConnection[Any], altered: Mapping[str, Range]) -> None:
        """Nothing: a refresh costs by time, not by symbol, so it waits for the whole slice."""

    async def note(self, conn: AsyncConnection[Any], change_ids: Sequence[int]) -> None:
        """Note the changes as still to refresh."""
        await conn.execute(
            "INSERT INTO market_data.pending_refreshes (change_id) SELECT unnest(%s::bigint[])", (list(change_ids),)
        )

    async def refresh(self, conn: AsyncConnection[Any], retention: Retention, now: datetime) -> int:
        """Refresh every level, finest first, over all ranges noted, and what another's refresh has left out."""
        floors = self.floors(retention, now)
        ids, whole, stale = await _noted(conn, floors[Timeframe.M1])
        first_bar = await _first_bar(conn)
        if first_bar is not None:
            stale |= await _skipped(conn, max(first_bar, floors[Timeframe.M1] or first_bar))
        if not stale:
            return 0
        edge = await _slowest_edge(conn, now)
        for finer, timeframe in pairwise(Timeframe):
            mark = await _watermark(conn, timeframe)
            bottom = floors[finer]
            for window in windows(timeframe, stale, now=now, edge=edge, watermark=mark, first_bar=first_bar):
                start = window.start if bottom is None else max(window.start, timeframe.ceil(bottom))
                if start < window.end:
                    await _refresh(conn, timeframe, Range(start, window.end))
        await _refreshed(conn, ids, whole)
        return len(whole)

    async def materialized(self, conn: AsyncConnection[Any]) -> dict[Timeframe, datetime | None]:
        """The watermarks."""
        return {timeframe: await _watermark(conn, timeframe) for timeframe in AGGREGATED}

    def age(self, conn: Connection[Any], retention: Retention, recheck_days: int) -> None:
        """By policies."""
        policies.reconcile(conn, retention, recheck_days)

    def keeps(self, retention: Retention) -> str:
        """As retention says."""
        kept = {timeframe.value: retention.get(timeframe) for timeframe in Timeframe}
        return "Kept: " + ", ".join(
            f"{name} {'for ever' if length is None else f'{length.days} days'}" for name, length in kept.items()
        )

    async def jobs(self, conn: AsyncConnection[Any]) -> list[policies.DatabaseJob]:
        """The policies."""
        return await policies.jobs(conn)

    async def purge(self, conn: AsyncConnection[Any], symbol: str) -> None:
        """Past the aggregates' views, and as much as there is."""
        await purge.purge(conn, symbol)


def windows(
    timeframe: Timeframe,
    stale: Ranges,
    *,
    now: datetime,
    edge: datetime,
    watermark: datetime | None,
    first_bar: datetime | None,
) -> Ranges:
    """Which windows of one level to refresh so that every bar in `stale` is served by it.

    Above the watermark the engine serves raw rows by itself; below it only what was refreshed. So a window
    - starts at a bucket's start, and ends no later than the open bucket and the edge of the slowest symbol,
      except that what lies below the watermark already is refreshed in any case;
    - leaves nothing unrefreshed behind when it moves the watermark: it then starts at the old one at the latest.
    watermark: None when nothing was ever refreshed; then it counts as the first bar.
    """
    end = timeframe.floor(min(now, edge))
    if watermark is not None:
        end = max(end, watermark)
    found = []
    for part in stale.close_gaps(shorter_than=WEEK):
        start, stop = timeframe.floor(part.start), min(timeframe.ceil(part.end), end)
        behind = watermark or first_bar
        if behind is not None and stop > behind:
            start = min(start, timeframe.floor(behind))
        found.append((start, stop))
    return Ranges(found)


async def _noted(conn: AsyncConnection[Any], floor: datetime | None) -> tuple[list[int], list[int], Ranges]:
    """Ids of the changes to refresh, of those that are refreshed whole, and their ranges.

    One that begins below the floor of 1m is refreshed above it and stays noted: what it changed below can no longer be
    refreshed, and readers are told so.
    """
    rows = await conn.execute(
        "SELECT c.id, lower(c.range), upper(c.range)"
        " FROM market_data.pending_refreshes AS p JOIN market_data.changes AS c ON c.id = p.change_id"
        " WHERE %(floor)s::timestamptz IS NULL OR upper(c.range) > %(floor)s",
        {"floor": floor},
    )
    found = await rows.fetchall()
    whole = [number for number, start, _ in found if floor is None or start >= floor]
    return [number for number, _, _ in found], whole, Ranges((start, end) for _, start, end in found)


async def _refreshed(conn: AsyncConnection[Any], ids: list[int], whole: list[int]) -> None:
    """Note no more what is refreshed whole, and write the ledgers' rows of all these symbols anew.

    Whoever keeps what was read of a symbol looks at its row alone to see whether that still holds. The rows come first,
    in the order in which others lock them: a removal holds its symbol's row when it comes to what is noted.
    """
    async with conn.transaction():
        await conn.execute(_TOUCH, (ids,))
        await conn.execute("DELETE FROM market_data.pending_refreshes WHERE change_id = ANY(%s)", (whole,))


async def _skipped(conn: AsyncConnection[Any], since: datetime) -> Ranges:
    """What the engine itself lists as not materialised below a watermark.

    Bars above the watermark are noted no more, for they are served as they are; a policy's refresh, or one by hand,
    that starts later than the watermark moves it over them.
    """
    rows = await conn.execute(_SKIPPED, {"since": since})
    return Ranges(await rows.fetchall())


async def _slowest_edge(conn: AsyncConnection[Any], now: datetime) -> datetime:
    cursor = await conn.execute(
        "SELECT min(upper(s.covered)), bool_or(isempty(s.covered))"
        " FROM market_data.sync_state AS s JOIN market_data.instruments AS i USING (symbol) WHERE i.active"
    )
    row = await cursor.fetchone()
    slowest, some_without = row or (None, True)
    earliest = now - AT_MOST_BEHIND
    return earliest if slowest is None or some_without else max(slowest, earliest)


async def _first_bar(conn: AsyncConnection[Any]) -> datetime | None:
    row = await (await conn.execute("SELECT min(first_bar) FROM market_data.sync_state")).fetchone()
    return row[0] if row else None


async def _watermark(conn: AsyncConnection[Any], timeframe: Timeframe) -> datetime | None:
    cursor = await conn.execute(
        "SELECT _timescaledb_functions.to_timestamp(nullif(greatest(mark, 0), 0))"
        " FROM _timescaledb_catalog.continuous_agg,"
        " LATERAL (SELECT _timescaledb_functions.cagg_watermark(mat_hypertable_id) AS mark) AS w"
        " WHERE user_view_schema = 'market_data' AND user_view_name = %s",
        (timeframe.table,),
    )
    row = await cursor.fetchone()
    return row[0] if row else None


async def _refresh(conn: AsyncConnection[Any], timeframe: Timeframe, window: Range) -> None:
    """Refresh a window in parts, the oldest first.

    The server's own batches will not do: they go newest first, so that an interruption leaves the watermark above what
    was not refreshed; and 2.28 skips a bucket that is the last of an invalidation and the first of a batch
    (timescaledb issue 10221).
    """
    start = window.start
    while start < window.end:
        end = min(start + BATCH[timeframe], window.end)
        await _refresh_part(conn, timeframe, Range(start, end))
        start = end


async def _refresh_part(conn: AsyncConnection[Any], timeframe: Timeframe, part: Range) -> None:
    for tries_left in reversed(range(_TRIES)):
        try:
            await conn.execute(
                "CALL refresh_continuous_aggregate(%s::regclass, %s::timestamptz, %s::timestamptz,"
                " options => jsonb_build_object('buckets_per_batch', 0))",
                (f"market_data.{timeframe.table}", part.start, part.end),
            )
        except CONFLICTS:
            if not tries_left:
                raise
            await asyncio.sleep(random.uniform(0.1, 1.0))  # noqa: S311 - jitter
        else:
            return


_TOUCH = """
    UPDATE market_data.sync_state AS s SET symbol = s.symbol
    FROM (
        SELECT symbol FROM market_data.sync_state
        WHERE symbol IN (SELECT symbol FROM market_data.changes WHERE id = ANY(%s))
        ORDER BY symbol
        FOR NO KEY UPDATE
    ) AS mine
    WHERE mine.symbol = s.symbol
"""
_SKIPPED = """
    SELECT
        _timescaledb_functions.to_timestamp(
            greatest(l.lowest_modified_value, _timescaledb_functions.to_unix_microseconds(%(since)s))),
        _timescaledb_functions.to_timestamp(least(l.greatest_modified_value, w.mark - 1) + 1)
    FROM _timescaledb_catalog.continuous_agg AS c
    JOIN _timescaledb_catalog.continuous_aggs_materialization_invalidation_log AS l
        ON l.materialization_id = c.mat_hypertable_id,
    LATERAL (SELECT _timescaledb_functions.cagg_watermark(c.mat_hypertable_id) AS mark) AS w
    WHERE c.user_view_schema = 'market_data' AND l.lowest_modified_value < w.mark
        AND least(l.greatest_modified_value, w.mark - 1) >= _timescaledb_functions.to_unix_microseconds(%(since)s)
"""
