"""What the benchmarks about reading have: invented bars, stored as a backfill stores them, and servers upon them."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from psycopg import AsyncConnection

from service import coverage, ledger
from service.bars import Bars, to_ms
from service.coverage import MINUTE, Piece
from service.db.connect import Database
from service.db.preflight import aged, checked
from service.instruments import SEED
from service.ranges import Range, Ranges
from service.settings import load
from service.store import Answered, store
from service.timeframes import utc_now
from tests import bench_sync

COINS = [one.symbol for one in SEED if one.asset_type == "crypto"][:10]
"""Their market never closes: every minute has a bar."""
BIG = COINS[0]
LONG = {BIG: 3652} | dict.fromkeys(COINS[1:], 700)
"""Days of history, the others' as long as a million bars are; the other database has `SHORT` of each."""
SHORT = 30
MILLION = 1_000_000
SOURCE = "replay:synthetic"
"""That of the provider whose backfill runs beside."""


class Absent(Exception):
    """What is to be measured is not there, or fails."""


class Server(NamedTuple):
    """A `candlewick serve` of its own, without a worker."""

    url: str
    pid: int


async def fill(url: str, engine: str, days: Mapping[str, int]) -> datetime:
    """Bars for every minute of so many days up to a few minutes ago, as a backfill stores them; their end."""
    now = utc_now()
    end = coverage.minute_floor(now) - 3 * MINUTE
    db = _database(url, engine)
    async with db, db.connection() as conn:
        await conn.execute("UPDATE market_data.instruments SET active = symbol = ANY(%s)", (list(days),))
        for piece in pieces(days, end):
            await ledger.want(conn, [piece.symbol], piece.range)
            answer = Answered(piece=piece, bars=bars(piece), rejected=(), source=SOURCE, asked_at=now)
            await store(conn, db.engine, [answer], settle=15 * MINUTE)
        await db.engine.refresh(conn, {}, now)
        await _settle(db, conn)
    return end


def pieces(days: Mapping[str, int], end: datetime) -> Iterator[Piece]:
    """What a backfill of so many days asks for, newest first."""
    for one in coverage.cut((name, "", Ranges.of(end - timedelta(days=count), end)) for name, count in days.items()):
        yield from one.pieces


async def fill_symbols(url: str, engine: str) -> datetime:
    """Twenty minutes of each symbol; one in a hundred has been silent for up to two years."""
    now = utc_now()
    db = _database(url, engine)
    async with db, db.connection() as conn:
        await bench_sync._symbols(db, bench_sync.MANY)
        answers = []
        for number in range(1, bench_sync.MANY + 1):
            silent = timedelta() if number % 100 else timedelta(weeks=number // 100)
            end = coverage.minute_floor(now) - 3 * MINUTE - silent
            piece = Piece(symbol=f"COIN{number}", ticker="", range=Range(end - 20 * MINUTE, end))
            await ledger.want(conn, [piece.symbol], piece.range)
            answers.append(Answered(piece=piece, bars=bars(piece), rejected=(), source=SOURCE, asked_at=now))
        for part in range(0, len(answers), 1000):
            await store(conn, db.engine, answers[part : part + 1000], settle=15 * MINUTE)
        # As if refreshed, which takes minutes: only one-minute bars are read here.
        await conn.execute("DELETE FROM market_data.pending_refreshes")
        await _settle(db, conn)
    return now


def _database(url: str, engine: str) -> Database:
    return aged(checked(url, engine), load(environment(url, engine), None))


async def _settle(db: Database, conn: AsyncConnection[Any]) -> None:
    """What the database does by itself in time: compress, clean up, analyse."""
    if db.engine.name == "timescaledb":
        query = "SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression'"
        for job in await (await conn.execute(query)).fetchall():
            await conn.execute("CALL run_job(%s)", job)
    await conn.execute("VACUUM (ANALYZE)")


def bars(piece: Piece) -> Bars:
    """A bar for every minute, like a coin's: prices of two decimals that wander, volumes of four; always the same."""
    ts = np.arange(to_ms(piece.range.start), to_ms(piece.range.end), 60_000)
    drawn = np.random.default_rng([ts[0], *piece.symbol.encode()]).random((5, len(ts)))
    prices = np.round(50_000 + 20_000 * np.sin(ts / 9e9) + 500 * np.sin(ts / 2e7) + 40 * (drawn[:4] - 0.5), 2)
    return Bars(
        ts=ts,
        open=prices[0],
        high=prices.max(axis=0),
        low=prices.min(axis=0),
        close=prices[1],
        volume=np.round(30 * drawn[4] + 0.0001, 4),
        vwap=np.round(prices.mean(axis=0), 4),
        trades=(900 * drawn[4]).astype(np.int64) + 1,
    )


def environment(url: str, engine: str, provider: str = "http://127.0.0.1:9") -> dict[str, str]:
    return {
        "DATABASE_URL": url,
        "ENGINE": engine,
        "POLYGON_BASE_URL": provider,
        "POLYGON_API_KEY": "bench",
        "POLYGON_RATE_LIMIT": "unlimited",
        "ENABLE_SYNC_SCHEDULER": "false",
        "RETENTION_1M": "off",
        "PORT": "0",
        "LOG_LEVEL": "ERROR",
    }


@contextmanager
def serving(url: str, engine: str) -> Iterator[Server]:
    """`candlewick serve` on this database."""
    with process([sys.executable, "-m", "service", "serve"], environment(url, engine)) as child:
        line = line_of(child)
        if " on http://" not in line:
            raise Absent(line)
        yield Server(line.split()[3], child.pid)


@contextmanager
def process(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=os.environ | env, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True
    ) as child:
        try:
            yield child
        finally:
            child.terminate()
            child.wait(20)


def line_of(child: subprocess.Popen[str]) -> str:
    line = child.stdout.readline() if child.stdout else ""
    if not line:
        raise Absent(f"{child.args!r} ended")
    return line
