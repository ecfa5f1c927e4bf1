"""What TimescaleDB and plain PostgreSQL do differently: one implementation each, and no `if` about it elsewhere."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from psycopg import AsyncConnection, Connection

from service.coverage import Retention
from service.db.plain import Plain
from service.db.policies import DatabaseJob
from service.db.timescaledb import TimescaleDB
from service.ranges import Range
from service.timeframes import Timeframe


class Engine(Protocol):
    """What the two engines do differently."""

    name: str

    def prepare(self, conn: Connection[Any]) -> None:
        """Make the database ready for the migrations; DatabaseError in one line where it cannot be."""

    def verify(self, conn: Connection[Any]) -> str:
        """Check that a migrated database can be served; return the engine's version for people to read."""

    def floors(self, retention: Retention, now: datetime) -> dict[Timeframe, datetime | None]:
        """Below which instant each timeframe's data is gone; None: everything is kept."""

    async def derive(self, conn: AsyncConnection[Any], altered: Mapping[str, Range]) -> None:
        """Within the transaction that wrote bars in these symbols' ranges: derive what is above them, if at once."""

    async def note(self, conn: AsyncConnection[Any], change_ids: Sequence[int]) -> None:
        """Within the same transaction: note that these changes are still to refresh, if they are."""

    async def refresh(self, conn: AsyncConnection[Any], retention: Retention, now: datetime) -> int:
        """Derive what was noted as due, on an autocommit connection, one caller a database.

        Returns the number of changes worked off. May be interrupted anywhere: what is not done stays noted.
        """

    async def materialized(self, conn: AsyncConnection[Any]) -> dict[Timeframe, datetime | None]:
        """Up to where (exclusive) each aggregate is stored, None: nowhere yet; above it is computed when read.

        A timeframe that is not named is always stored whole.
        """

    def age(self, conn: Connection[Any], retention: Retention, recheck_days: int) -> None:
        """Make the database drop and compress as the settings ask; what is so already stays as it is.

        conn: in autocommit mode. Bars younger than the re-checks reach are not compressed.
        """

    def keeps(self, retention: Retention) -> str:
        """How long what is kept, in words."""

    async def jobs(self, conn: AsyncConnection[Any]) -> list[DatabaseJob]:
        """What the database does by itself, and how it went."""

    async def purge(self, conn: AsyncConnection[Any], symbol: str) -> None:
        """Within the caller's transaction: delete every bar and candle of a symbol, below every floor too."""


ENGINES: Mapping[str, Engine] = {"timescaledb": TimescaleDB(), "plain": Plain()}
