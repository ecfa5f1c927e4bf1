"""The one way into the database: preflight checks, the pool, and what a session is set to."""

import asyncio
import select
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import psycopg
from psycopg import AsyncConnection
from psycopg.types.multirange import Multirange, TimestamptzMultirange
from psycopg.types.range import Range as PgRange
from psycopg.types.range import TimestamptzRange
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from service.db import embedded
from service.db.engines import ENGINES, Engine
from service.db.timescaledb import NOT_PRELOADED
from service.errors import DatabaseError
from service.ranges import Range, Ranges
from service.settings import Settings

CONNECT_SECONDS = 10
_SESSION = (
    "-c timezone=UTC"
    # A generic plan cannot exclude chunks when planned: 4.6-30 ms against 0.3-0.5.
    " -c plan_cache_mode=force_custom_plan"
    " -c jit=off"
    # Refreshes run beside fetching and writing: a parallel plan would take those processors, a sort on disk the disk.
    " -c max_parallel_workers_per_gather=0"
    " -c work_mem=32MB"
)
_NOTICE_SILENCE = "-c tcp_keepalives_idle=4 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"
FETCHER_LOCK = 0x63616E646C65
"""Key of the advisory lock whose holder alone calls the provider."""
WRITER_LOCK = 0x63616E646C66
"""Key of the lock that a transaction holds from writing `changes` to its commit, so that ids follow the commits."""


class Database:
    """A checked database: its engine, its version, and a pool of connections in autocommit mode."""

    def __init__(self, url: str, engine: Engine, version: str, *, size: int = 6) -> None:
        self.url = url
        self.engine = engine
        self.version = version
        self.pool = AsyncConnectionPool(
            url,
            kwargs={"autocommit": True, "options": _SESSION, "connect_timeout": CONNECT_SECONDS},
            min_size=1,
            max_size=size,
            timeout=CONNECT_SECONDS,
            # The pauses between the tries of an attempt double: up to two minutes within the pool's own 300 s.
            reconnect_timeout=CONNECT_SECONDS,
            check=_check,
            open=False,
        )

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection in autocommit mode, given back at the end; DatabaseError when none can be had.

        CancelledError if this task was cancelled meanwhile: the pool waits with `asyncio.wait_for`, which up to
        Python 3.11 forgets a cancellation that comes together with its result. An earlier one does not count: 3.11's
        TaskGroup leaves its own on the task behind when it fails.
        """
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        try:
            async with self.pool.connection() as conn:
                if task is not None and task.cancelling() > before:
                    raise asyncio.CancelledError
                yield conn
        except PoolTimeout as exc:
            raise DatabaseError(f"the database did not answer within {CONNECT_SECONDS} s") from exc

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection outside the pool, for session-level locks; closed at the end.

        The server ends it when its client has been silent for ten seconds, as after a loss of power.
        """
        conn = await AsyncConnection.connect(
            self.url, autocommit=True, options=f"{_SESSION} {_NOTICE_SILENCE}", connect_timeout=CONNECT_SECONDS
        )
        async with conn:
            yield conn

    async def __aenter__(self) -> Self:
        await self.pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close()


async def _check(conn: AsyncConnection[Any]) -> None:
    """Raise if a pooled connection is of no more use.

    The server says so as it goes, so a silent socket is a good one and costs no round trip; anything that it has to
    say is looked at by asking something.
    """
    if select.select([conn.fileno()], [], [], 0)[0]:
        await AsyncConnectionPool.check_connection(conn)


@contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """The configured database's URL; where none is configured, the embedded one's, which runs meanwhile."""
    if settings.database_url is not None:
        yield settings.database_url
    else:
        with embedded.start(settings.data_dir) as server:
            yield server.url


def connect(url: str) -> psycopg.Connection[Any]:
    """A synchronous autocommit connection; DatabaseError in one line when it cannot be had."""
    try:
        return psycopg.connect(url, autocommit=True, options=_SESSION, connect_timeout=CONNECT_SECONDS)
    except psycopg.OperationalError as exc:
        raise DatabaseError(_why(exc, url)) from exc


def check_engine(conn: psycopg.Connection[Any], engine: str) -> None:
    """Refuse a database that another engine's migration has made; one never migrated passes."""
    if conn.execute("SELECT to_regclass('market_data.installation')").fetchone() == (None,):
        return
    row = conn.execute("SELECT engine FROM market_data.installation").fetchone()
    if row is not None and row[0] != engine:
        raise DatabaseError(
            f"this database was made for ENGINE={row[0]}, and ENGINE is {engine} now: "
            f"set ENGINE={row[0]}, or use another database"
        )


def engine_named(name: str) -> Engine:
    """The implementation of ENGINE=name."""
    return ENGINES[name]


def as_ranges(stored: Iterable[PgRange[Any]] | None) -> Ranges:
    """The domain's form of a stored multirange, whose ranges all end; NULL is the empty set."""
    ends: Any = [(part.lower, part.upper) for part in stored or ()]
    return Ranges(ends)


def as_multirange(ranges: Ranges) -> Multirange[Any]:
    """The database's form of a set of ranges."""
    return TimestamptzMultirange([TimestamptzRange(part.start, part.end) for part in ranges])


def as_range(one: Range) -> PgRange[Any]:
    """The database's form of one range."""
    return TimestamptzRange(one.start, one.end)


def _why(exc: psycopg.OperationalError, url: str) -> str:
    """One line: what is wrong and what to do. Never with a password."""
    told = psycopg.conninfo.conninfo_to_dict(url)
    where = f"{told.get('host', 'localhost')}:{told.get('port', 5432)}"
    text = " ".join(str(exc).split())
    if any(sign in text for sign in ("authentication failed", "no password supplied", " role ")):
        return (
            f"the database at {where} refuses user {told.get('user')!r}: check DB_USER and DB_PASSWORD, or DATABASE_URL"
        )
    if "database" in text and "does not exist" in text:
        return f"there is no database {told.get('dbname')!r} at {where}: create it, or check DB_NAME or DATABASE_URL"
    if "must be preloaded" in text:
        return NOT_PRELOADED
    return f"cannot reach the database at {where}: is it running? check DB_HOST and DB_PORT, or DATABASE_URL ({text})"
