"""Takes one symbol out of a hypertable and the continuous aggregates above it, also where no refresh may go."""

from typing import Any

from psycopg import AsyncConnection, sql

from service.timeframes import AGGREGATED, Timeframe


async def purge(conn: AsyncConnection[Any], symbol: str) -> None:
    """Within the caller's transaction: delete every bar and candle of a symbol, however old, compressed or many.

    The aggregates are locked against refreshes until the transaction ends, so that none puts back what it read before.
    """
    materialized = await _materialized(conn)
    # Finest first, as a refresh does. Readers are not held up, nor is what writes bars.
    for table in materialized:
        await conn.execute(sql.SQL("LOCK TABLE ONLY {} IN SHARE ROW EXCLUSIVE MODE").format(table))
    await conn.execute("SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0")
    for table in (sql.Identifier("market_data", Timeframe.M1.table), *materialized):
        await conn.execute(sql.SQL("DELETE FROM {} WHERE symbol = %(symbol)s").format(table), {"symbol": symbol})


async def _materialized(conn: AsyncConnection[Any]) -> list[sql.Identifier]:
    """The hypertables behind the aggregates, finest first: their views cannot be deleted from."""
    cursor = await conn.execute(_MATERIALIZED, {"views": [timeframe.table for timeframe in AGGREGATED]})
    return [sql.Identifier(schema, name) for schema, name in await cursor.fetchall()]


_MATERIALIZED = """
    SELECT materialization_hypertable_schema, materialization_hypertable_name
    FROM timescaledb_information.continuous_aggregates
    WHERE view_schema = 'market_data' AND view_name = ANY(%(views)s)
    ORDER BY array_position(%(views)s, view_name::text)
"""
