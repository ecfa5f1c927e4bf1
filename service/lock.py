"""Only one process a database calls the provider: the holder of an advisory lock; others wait for its end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection

from service.db.connect import FETCHER_LOCK, Database
from service.errors import DatabaseError

CHECK_SECONDS = 5.0
"""How often the holder looks whether it still is the holder."""
RETRY_SECONDS = 0.5
"""How often the others try. The server frees the lock when the holder's connection ends, or was silent for 10 s."""


class LockLost(DatabaseError):
    """The connection that holds the lock is gone: another process may be calling by now."""


@asynccontextmanager
async def fetching_alone(
    db: Database, waiting: Callable[[], Awaitable[bool]]
) -> AsyncIterator[AsyncConnection[Any] | None]:
    """Hold the lock whose holder alone calls the provider; yields its connection.

    waiting: awaited again and again while another process holds it; when it returns False, None is yielded instead.
    """
    async with db.dedicated() as conn:
        while not await _try(conn):
            if not await waiting():
                yield None
                return
            await asyncio.sleep(RETRY_SECONDS)
        yield conn


async def _try(conn: AsyncConnection[Any]) -> bool:
    cursor = await conn.execute("SELECT pg_try_advisory_lock(%s)", (FETCHER_LOCK,))
    return await cursor.fetchone() == (True,)


async def guard(
    conn: AsyncConnection[Any],
    beat: Callable[[], Awaitable[object]] | None = None,
    heard: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Raise LockLost when the connection that holds the lock is; ends otherwise only by cancellation.

    beat: awaited every few seconds while the lock is held. heard: awaited after a notification on this connection.
    """
    try:
        while True:
            await conn.execute("SELECT 1")
            if beat is not None:
                await beat()
            async for _ in conn.notifies(timeout=CHECK_SECONDS, stop_after=1):
                if heard is not None:
                    await heard()
    except psycopg.Error as exc:
        raise LockLost("the connection that holds the right to call the provider was lost") from exc
