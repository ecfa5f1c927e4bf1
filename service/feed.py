"""Follows `changes`: which bars became new or other, in the order of commit, as of a moment that is never too early."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, LiteralString

import msgspec

from service.db.connect import Database
from service.ranges import Range

AT_ONCE = 10_000
"""Changes that are read at once; where there are more, everything counts as changed."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Bars of a symbol that became new or other, or are gone."""

    id: int
    symbol: str
    range: Range


class Feed:
    """The changes since it was first asked, read when somebody asks, in one query for all who ask meanwhile.

    forget: called with each new change, and with None where everything may have changed (too much has, or the database
    is another one).
    """

    def __init__(self, db: Database, forget: Callable[[Change | None], None]) -> None:
        self._db = db
        self._forget = forget
        self._installed_at: datetime | None = None
        self._position: int | None = None
        self._running: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None

    @property
    def position(self) -> int | None:
        """Id of the last change known; None before the first look."""
        return self._position

    async def look(self) -> None:
        """Wait for a look at the database that began after this call: whatever was committed before is known then.

        Raises DatabaseError and psycopg's errors; then nothing new is known.
        """
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._after(self._running))
        await asyncio.shield(self._waiting)

    async def _after(self, running: asyncio.Task[None] | None) -> None:
        if running is not None:
            await asyncio.wait([running])
        self._running, self._waiting = self._waiting, None
        async with self._db.connection() as conn:
            values = {"position": self._position, "most": AT_ONCE}
            rows = await (await conn.execute(_CHANGES, values, binary=True, prepare=True)).fetchall()
        self._take(rows)

    def _take(self, rows: Sequence[tuple[Any, ...]]) -> None:
        installed_at, newest = rows[0][:2] if rows else (None, 0)
        known = self._position is not None and installed_at == self._installed_at and newest >= self._position
        if not known or len(rows) >= AT_ONCE:
            self._forget(None)
        else:
            for _, _, number, symbol, start, end in rows:
                if number is not None:
                    self._forget(Change(id=number, symbol=symbol, range=Range(start, end)))
        self._installed_at, self._position = installed_at, newest


_CHANGES: LiteralString = """
    SELECT i.created_at, m.newest, c.id, c.symbol, lower(c.range), upper(c.range)
    FROM market_data.installation AS i
    CROSS JOIN (SELECT coalesce(max(id), 0) AS newest FROM market_data.changes) AS m
    LEFT JOIN LATERAL (
        SELECT id, symbol, range FROM market_data.changes
        WHERE id > %(position)s AND id <= m.newest ORDER BY id LIMIT %(most)s
    ) AS c ON true
"""
