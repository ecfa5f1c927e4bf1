"""What TimescaleDB and plain PostgreSQL do differently: one implementation each, and no `if` about it elsewhere."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from psycopg import AsyncConnection, Connection

from service.coverage import Retention
from service.db.plain import Plain
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

    async def derive(self, conn: AsyncConnection[Any], symbol: str, altered: Range) -> None:
        """Within the transaction that wrote these bars: derive the aggregates above them, if that is done at once."""

    async def note(self, conn: AsyncConnection[Any], change_id: int) -> None:
        """Within the same transaction: note that the change is still to refresh, if it is."""

    async def refresh(self, conn: AsyncConnection[Any], retention: Retention, now: datetime) -> int:
        """Derive what was noted as due, on an autocommit connection, one caller a database.

        Returns the number of changes worked off. May be interrupted anywhere: what is not done stays noted.
        """


ENGINES: Mapping[str, Engine] = {"timescaledb": TimescaleDB(), "plain": Plain()}
