"""PostgreSQL without the extension: the transaction that writes bars derives the aggregates; nothing ages."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, LiteralString

from psycopg import AsyncConnection, Connection, sql

from service.coverage import Retention
from service.db.policies import DatabaseJob
from service.errors import DatabaseError
from service.ranges import Range
from service.timeframes import Timeframe

OLDEST = 14


class Plain:
    """Ordinary tables: the transaction that writes bars recomputes the buckets above them. Nothing ages here."""

    name = "plain"

    def prepare(self, conn: Connection[Any]) -> None:
        """Check the server's version: the ledger needs multiranges."""
        self.verify(conn)

    def verify(self, conn: Connection[Any]) -> str:
        """PostgreSQL 14 or newer."""
        major, minor = divmod(conn.info.server_version, 10_000)
        if major < OLDEST:
            raise DatabaseError(f"PostgreSQL {major} is too old: Candlewick needs {OLDEST} or newer")
        return f"PostgreSQL {major}.{minor}"

    def floors(self, retention: Retention, now: datetime) -> dict[Timeframe, datetime | None]:  # noqa: ARG002 - the engines share one signature
        """Everything is kept."""
        return dict.fromkeys(Timeframe)

    async def derive(self, conn: AsyncConnection[Any], altered: Mapping[str, Range]) -> None:
        """Recompute every bucket that holds an altered bar, finest level first."""
        for finer, timeframe in pairwise(Timeframe):
            names = {
                "level": sql.Identifier("market_data", timeframe.table),
                "finer": sql.Identifier("market_data", finer.table),
            }
            arguments = {
                "symbols": list(altered),
                "starts": [timeframe.floor(one.start) for one in altered.values()],
                "ends": [timeframe.ceil(one.end) for one in altered.values()],
                "length": timeframe.length,
            }
            await conn.execute(sql.SQL(_DELETE_BUCKETS).format(**names), arguments)
            await conn.execute(sql.SQL(_COMPUTE_BUCKETS).format(**names), arguments)

    async def note(self, conn: AsyncConnection[Any], change_ids: Sequence[int]) -> None:
        """Nothing: all is derived already."""

    async def refresh(self, conn: AsyncConnection[Any], retention: Retention, now: datetime) -> int:  # noqa: ARG002 - the engines share one signature
        """Nothing is ever due."""
        return 0

    async def materialized(self, conn: AsyncConnection[Any]) -> dict[Timeframe, datetime | None]:  # noqa: ARG002 - as above
        """Every aggregate is stored whole."""
        return {}

    def age(self, conn: Connection[Any], retention: Retention, recheck_days: int) -> None:
        """Nothing: all is kept as it is."""

    def keeps(self, retention: Retention) -> str:  # noqa: ARG002 - the engines share one signature
        """For ever."""
        return "This engine keeps everything (no retention, no compression)."

    async def jobs(self, conn: AsyncConnection[Any]) -> list[DatabaseJob]:  # noqa: ARG002 - as above
        """It does nothing by itself."""
        return []

    async def purge(self, conn: AsyncConnection[Any], symbol: str) -> None:
        """Delete the symbol from all six tables."""
        for timeframe in Timeframe:
            query = sql.SQL("DELETE FROM {} WHERE symbol = %(symbol)s")
            await conn.execute(query.format(sql.Identifier("market_data", timeframe.table)), {"symbol": symbol})


_DELETE_BUCKETS: LiteralString = """
    DELETE FROM {level} AS c
    USING unnest(%(symbols)s::text[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) AS a (symbol, starts, ends)
    WHERE c.symbol = a.symbol AND c.ts >= a.starts AND c.ts < a.ends
"""
_COMPUTE_BUCKETS: LiteralString = """
    INSERT INTO {level} (symbol, ts, open, high, low, close, volume, vwap, trades)
    SELECT
        c.symbol,
        date_bin(%(length)s, ts, TIMESTAMPTZ '1970-01-01 00:00+00') AS bucket,
        (array_agg(open ORDER BY ts))[1],
        max(high),
        min(low),
        (array_agg(close ORDER BY ts DESC))[1],
        sum(volume),
        CASE WHEN count(*) FILTER (WHERE volume > 0 AND vwap IS NULL) = 0
            THEN sum(vwap * volume) / nullif(sum(volume), 0) END,
        sum(trades)::bigint
    FROM {finer} AS c
    JOIN unnest(%(symbols)s::text[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) AS a (symbol, starts, ends)
        ON c.symbol = a.symbol AND c.ts >= a.starts AND c.ts < a.ends
    GROUP BY c.symbol, bucket
"""
