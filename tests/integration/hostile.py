"""What the tests of hostile clients share: a server process, bytes to it without a client's manners, a million bars."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
import psycopg

from service.db.connect import Database
from tests.integration.backfilling import environment
from tests.integration.marketdata import SOURCE

SMALL = "/api/candles/BTCUSD?from=2021-03-01&to=2021-03-02&limit=10"
"""A small question to the million bars."""
BIG = "/api/candles/BTCUSD?from=2021-01-01&to=2022-11-26T10:40"
"""The whole million; `&format=` and `&limit=` are to follow."""
MILLION = 1_000_000


class Process(NamedTuple):
    """A `candlewick serve` of its own, without a worker."""

    port: int
    pid: int
    log: Path

    @property
    def rss(self) -> int:
        """Bytes of memory that it holds."""
        size: int = psutil.Process(self.pid).memory_info().rss
        return size


class Answer(NamedTuple):
    """What came back over a connection."""

    raw: bytes
    ended: str
    """eof, reset, or silent: nothing more came."""

    @property
    def status(self) -> int:
        """Of the first answer."""
        return int(self.raw.split(b" ", 2)[1])

    @property
    def body(self) -> bytes:
        """All behind the first head."""
        return self.raw.partition(b"\r\n\r\n")[2]


@contextmanager
def serving(db: Database, folder: Path, **changes: str) -> Iterator[Process]:
    """A server over a database; its log goes to a file, since a full pipe would stop it."""
    env = environment(
        DATABASE_URL=db.url,
        ENGINE=db.engine.name,
        PORT="0",
        DATA_DIR=str(folder / "data"),
        RETENTION_1M="off",
        **changes,
    )
    log = folder / "serve.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "service", "serve"], env=env, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            url = next(word for line in process.stdout for word in line.split() if word.startswith("http://"))
            yield Process(int(url.rpartition(":")[2]), process.pid, log)
        finally:
            process.terminate()
            process.wait(20)


def connected(port: int, *, seconds: float = 10, window: int | None = None) -> socket.socket:
    """A connection; window: of how many bytes its receiving end holds."""
    one = socket.socket()
    one.settimeout(seconds)
    if window is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    one.connect(("127.0.0.1", port))
    return one


def asking(path: str, *lines: str) -> bytes:
    """A request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode("latin-1")


def exchange(port: int, sent: bytes, *, seconds: float = 10) -> Answer:
    """Send some bytes, and read until the server hangs up or has been silent for so long."""
    with closing(connected(port, seconds=seconds)) as one:
        with contextlib.suppress(OSError):
            one.sendall(sent)
        return rest(one)


def rest(one: socket.socket) -> Answer:
    """Everything that still comes."""
    parts = []
    try:
        while part := one.recv(1 << 20):
            parts.append(part)
    except TimeoutError:
        return Answer(b"".join(parts), "silent")
    except OSError:
        return Answer(b"".join(parts), "reset")
    return Answer(b"".join(parts), "eof")


def answers(port: int, path: str) -> float:
    """How many seconds an answer takes, which is a good one."""
    began = time.monotonic()
    found = exchange(port, asking(path, "Connection: close"))
    assert (found.status, found.ended) == (200, "eof"), found.raw[:500]
    return time.monotonic() - began


def until(what: str, done: Any, seconds: float = 5) -> None:  # noqa: ANN401 - a callable without arguments
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def busy(conn: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """State and statement of every other client of the database that is within a statement or a transaction."""
    return conn.execute(
        "SELECT state, query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend' AND state <> 'idle'"
    ).fetchall()


class Peak:
    """The most memory that a process held while it was watched."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self.most = process.rss

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """Bytes above those at the beginning."""
        return self.most - self.before

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, self._process.rss)


async def million(db: Database) -> None:
    """BTCUSD with a million minutes in a row; ETHUSD with a day, and 200,000 minutes five years after it.

    Written past the store, in a few seconds: the other timeframes know nothing of them.
    """
    async with db, db.connection() as conn:
        await conn.execute("UPDATE market_data.installation SET source = %s", [SOURCE])
        await conn.execute(_BARS)
        await conn.execute(_GAP)
        await conn.execute(_LEDGER)
        await conn.execute("VACUUM ANALYZE market_data.candles_1m")


_BARS = """
    INSERT INTO market_data.candles_1m (symbol, ts, open, high, low, close, volume, vwap, trades)
    SELECT 'BTCUSD', TIMESTAMPTZ '2021-01-01' + n * interval '1 minute',
        1.25 + n * 7919 % 10007 / 1e5, 1.5 + n * 104729 % 10007 / 1e5, 1.1 + n * 1299709 % 10007 / 1e5,
        1.3 + n * 15485863 % 10007 / 1e5, n * 31337 % 9973 / 8.0, 1.3 + n * 6700417 % 10007 / 1e5, n % 991
    FROM generate_series(0::bigint, 999999) AS n
"""
_GAP = """
    INSERT INTO market_data.candles_1m (symbol, ts, open, high, low, close, volume, vwap, trades)
    SELECT 'ETHUSD', ts - back, open, high, low, close, volume, vwap, trades
    FROM market_data.candles_1m, (
        VALUES (interval '0', interval '200000 minutes'), (interval '1827 days', interval '1 day')
    ) AS part (back, length)
    WHERE symbol = 'BTCUSD' AND ts < TIMESTAMPTZ '2021-01-01' + length
"""
_LEDGER = """
    UPDATE market_data.sync_state SET wanted = known, covered = known, first_bar = first, last_bar = last
    FROM (
        SELECT symbol AS name, min(ts) AS first, max(ts) AS last,
            tstzmultirange(tstzrange(min(ts), max(ts) + interval '1 minute')) AS known
        FROM market_data.candles_1m GROUP BY symbol
    ) AS there
    WHERE symbol = name
"""
