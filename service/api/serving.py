"""What every handler works with; made once by the composition root."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection

from service.api.turns import Turns
from service.db.connect import Database
from service.latest import Lookups
from service.proof import Head, Terms
from service.recent import Recent
from service.settings import Settings
from service.windows import State

BULK_READS = 2
"""Windows of streamed answers that are read from the database at once; other reads never wait for them."""


class Serving:
    """The database, the settings and the clock (aware UTC), and the source of the data once it is known."""

    def __init__(self, db: Database, settings: Settings, clock: Callable[[], datetime]) -> None:
        self.db = db
        self.settings = settings
        self.clock = clock
        self.source: str | None = None
        """As recorded in the database: polygon, replay:synthetic, replay:csv; None before the first bar."""
        self.known: dict[str, State] = {}
        """What was known of each symbol when it was read last."""
        self.recent = Recent() if settings.cache_mb else None
        self.lookups = Lookups() if settings.cache_mb else None
        self.turns = Turns()
        self._bulk = asyncio.Semaphore(BULK_READS)

    def terms(self) -> Terms:
        """As of when, and by which settings, completeness is judged: now."""
        now = self.clock()
        return Terms(
            now=now,
            settle=timedelta(minutes=self.settings.settle_minutes),
            floors=self.db.engine.floors(self.settings.retention, now),
        )

    def note(self, heads: Iterable[Head]) -> None:
        """Remember what was read of symbols, for the next time."""
        for head in heads:
            self.source = head.state.source or self.source
            self.known[head.symbol] = head.state

    def last_bar(self, symbol: str) -> datetime | None:
        """Where the symbol's bars ended then, to look there first for the latest ones."""
        known = self.known.get(symbol)
        return None if known is None else known.ledger.last_bar

    @asynccontextmanager
    async def bulk(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection for a window of a streamed answer: few at a time, so that there is always one for the others."""
        async with self._bulk:
            await self.turns.after_the_others()
            async with self.db.connection() as conn:
                yield conn
