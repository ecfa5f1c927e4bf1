"""`make bench`: end-to-end speed, as a ratio to a limit measured in the same run, and what memory it takes.

The limit is the fastest way that PostgreSQL has of taking the same rows: a binary COPY of ready-made bytes into an
identical table without aggregates. Everything is made for the run and removed at its end. Needs no key and no network.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import psycopg
from psycopg import sql

from service import query, spans
from service.backfill import backfill
from service.bars import Bars
from service.coverage import Piece
from service.db import binary_copy, embedded
from service.db.migrate import migrate
from service.db.preflight import checked
from service.demo import replay_process
from service.frames import Ask
from service.plan import Plan
from service.proof import Terms
from service.ranges import Range
from service.settings import Settings, load
from service.store import Stored
from service.timeframes import Timeframe, utc_now
from tests import bench_reads, bench_sync

SYMBOLS = ["EURUSD", "GBPUSD", "USDJPY", "XAUUSD", "SPX500", "BTCUSD", "ETHUSD", "SOLUSD", "XRPUSD", "ADAUSD"]
COINS = ["BTCUSD", "ETHUSD", "SOLUSD", "XRPUSD", "ADAUSD", "DOGEUSD", "LTCUSD", "BCHUSD", "LINKUSD", "DOTUSD"]
NOW = datetime(2026, 6, 1, tzinfo=UTC)
"""End of every range: the synthetic market is the same for ever, and so is the work."""


class Measured(NamedTuple):
    """One backfill in a process of its own."""

    bars: int
    seconds: float
    cpu: float
    peak_mb: float


class Place(NamedTuple):
    """Where databases can be made."""

    engine: str
    admin: str
    url: Callable[[str], str]


def main() -> None:
    """Run everything that this machine has an engine for."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each measurement; the median counts (default 3)")
    parser.add_argument("--part", choices=("backfill", "sync", "reads"), help="only this part")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help=f"of the part reads only these: {', '.join(bench_reads.MEASURES)}",
    )
    parser.add_argument("--engine", choices=tuple(PLACES), help="only on this engine")
    parser.add_argument("--child", nargs=5, metavar="X", help=argparse.SUPPRESS)
    parser.add_argument("--sync", nargs=4, metavar="X", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        asyncio.run(_child(*args.child))
        return
    if args.sync:
        bench_sync.child(*args.sync)
        return
    print(f"{os.cpu_count()} processors, Python {sys.version.split()[0]}; medians of {args.runs} runs", flush=True)
    with replay_process() as provider:
        for name, place in PLACES.items():
            with place() if args.engine in (None, name) else contextlib.nullcontext() as found:
                if found is None:
                    continue
                print(f"\n{found.engine}", flush=True)
                if args.part in (None, "backfill"):
                    _engine(found, provider, args.runs)
                if args.part in (None, "sync"):
                    _sync(found, provider, args.runs)
                if args.part in (None, "reads"):
                    bench_reads.run(partial(_database, found), found.engine, provider, args.runs, args.only)


def _engine(place: Place, provider: str, runs: int) -> None:
    ratios, rates, limits, cpus, peaks = [], [], [], [], []
    for number in range(runs + 1):
        with _database(place) as url:
            ours = _backfill(url, place.engine, provider, SYMBOLS, 60)
            limit = _bare_copy(url, place.engine)
            if number == 0:  # warms the replay's pages and the server's memory
                continue
            rates.append(ours.bars / ours.seconds)
            limits.append(limit)
            ratios.append(rates[-1] / limit)
            cpus.append(ours.cpu)
            peaks.append(ours.peak_mb)
            if number == runs:
                asyncio.run(_read(url, place.engine))
    median = statistics.median
    print(f"  backfill, 10 symbols x 60 days, {ours.bars:,} bars: {median(rates):,.0f} bars/s end to end")
    print(f"  bare binary COPY of the same rows: {median(limits):,.0f} rows/s")
    print(f"  ratio: {median(ratios):.2f} ({', '.join(f'{one:.2f}' for one in ratios)})")
    print(f"  the process: {median(cpus):.1f} s CPU, peak memory {max(peaks):.0f} MB", flush=True)
    costs = []
    for days in (70, 700):
        with _database(place) as url:
            ours = _backfill(url, place.engine, provider, COINS, days)
        costs.append(ours.seconds / ours.bars * 1e6)
        print(f"  {ours.bars:,} bars: {costs[-1]:.2f} us a bar, peak memory {ours.peak_mb:.0f} MB", flush=True)
    print(f"  cost a bar at ten times the bars: x {costs[1] / costs[0]:.2f}", flush=True)


def _sync(place: Place, provider: str, runs: int) -> None:
    for what, times in (("passes", 1), ("recheck", 1), ("reads", runs)):
        for _ in range(times):
            with _database(place) as url:
                command = [sys.executable, "-m", "tests.bench", "--sync", what, url, place.engine, provider]
                subprocess.run(command, check=True)


def _backfill(url: str, engine: str, provider: str, symbols: list[str], days: int) -> Measured:
    command = [sys.executable, "-m", "tests.bench", "--child", url, engine, provider, ",".join(symbols), str(days)]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return Measured(**json.loads(said.stdout))


class _Silent:
    def planned(self, plan: Plan) -> None: ...
    def waiting(self) -> None: ...
    def stored(self, piece: Piece, stored: Stored) -> None: ...
    def failed(self, piece: Piece, reason: str) -> None: ...
    def refreshing(self) -> None: ...


async def _child(url: str, engine: str, provider: str, symbols: str, days: str) -> None:
    settings = _settings(url, engine, provider)
    asked = Range(NOW - timedelta(days=int(days)), NOW)
    cpu = time.process_time()
    async with checked(url, engine) as db:
        summary = await backfill(db, settings, symbols.split(","), asked, watcher=_Silent())
    if summary.failures:
        raise SystemExit(str(summary.failures))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = Measured(summary.stored.new, summary.seconds, time.process_time() - cpu, peak)
    print(json.dumps(figures._asdict()))


def _bare_copy(url: str, engine: str) -> float:
    """Rows a second of the server's fastest way, from bytes that are ready."""
    with psycopg.connect(url, autocommit=True, options="-c timezone=UTC") as conn:
        conn.execute("CREATE TABLE public.bare (LIKE market_data.candles_1m)")
        if engine == "timescaledb":
            conn.execute(
                "SELECT create_hypertable('public.bare', by_range('ts', INTERVAL '7 days'),"
                " create_default_indexes => false)"
            )
        conn.execute("ALTER TABLE public.bare ADD PRIMARY KEY (symbol, ts)")
        conn.execute("CREATE INDEX ON public.bare (ts DESC)")
        streams = [stream for symbol in SYMBOLS for stream in _streams(conn, symbol)]
        columns = sql.SQL(", ").join(map(sql.Identifier, binary_copy.COLUMNS))
        statement = sql.SQL("COPY public.bare ({}) FROM STDIN (FORMAT BINARY)").format(columns)
        began = time.perf_counter()
        for stream in streams:
            with conn.cursor() as cursor, cursor.copy(statement) as copy:
                copy.write(stream)
        seconds = time.perf_counter() - began
        row = conn.execute("SELECT count(*) FROM public.bare").fetchone()
        conn.execute("DROP TABLE public.bare")
    return (row[0] if row else 0) / seconds


def _streams(conn: psycopg.Connection[Any], symbol: str) -> Iterator[bytes]:
    """The symbol's bars in pieces as a backfill writes them, each as a COPY stream."""
    rows = conn.execute(
        "SELECT (extract(epoch FROM ts) * 1000)::bigint, open, high, low, close,"
        " coalesce(volume, 'NaN'), coalesce(vwap, 'NaN'), coalesce(trades, -1)"
        " FROM market_data.candles_1m WHERE symbol = %s ORDER BY ts",
        (symbol,),
        binary=True,
    ).fetchall()
    ts, *prices, trades = (np.array(column) for column in zip(*rows, strict=True))
    names = ("open", "high", "low", "close", "volume", "vwap")
    bars = Bars(ts=ts, trades=trades, **dict(zip(names, prices, strict=True)))
    for start in range(0, len(bars), 40_320):
        yield binary_copy.encode([(symbol, bars.take(np.arange(start, min(start + 40_320, len(bars)))))])


async def _read(url: str, engine: str) -> None:
    settings = _settings(url, engine, "http://127.0.0.1:9")
    async with checked(url, engine) as db, db.connection() as conn:
        for timeframe, limit in ((Timeframe.M1, 500), (Timeframe.H1, 500), (Timeframe.D1, 50), (Timeframe.M1, 50_000)):
            times = []
            for _ in range(11):
                began = time.perf_counter()
                now = utc_now()
                terms = Terms(now=now, settle=timedelta(minutes=15), floors=db.engine.floors(settings.retention, now))
                ask = Ask(symbol="BTCUSD", span=spans.parse(timeframe.value), limit=limit)
                found = await query.page(conn, terms, ask)
                times.append((time.perf_counter() - began) * 1000)
            count = len(found.frame)
            print(f"  read the latest {count:,} candles of {timeframe.value}: {statistics.median(times):.1f} ms")


def _settings(url: str, engine: str, provider: str) -> Settings:
    given = {
        "DATABASE_URL": url,
        "ENGINE": engine,
        "POLYGON_BASE_URL": provider,
        "POLYGON_API_KEY": "bench",
        "POLYGON_RATE_LIMIT": "unlimited",
        "RETENTION_1M": "off",
    }
    return load(given, None)


@contextlib.contextmanager
def _plain() -> Iterator[Place | None]:
    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    folder.chmod(0o755)
    try:
        with embedded.start(folder) as server:
            yield _place("plain", server.url)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _timescaledb() -> Iterator[Place | None]:
    url = os.environ.get("TEST_DATABASE_URL")
    if url is None:
        print("\ntimescaledb: SKIPPED, no TEST_DATABASE_URL", flush=True)
    yield _place("timescaledb", url) if url else None


PLACES = {"plain": _plain, "timescaledb": _timescaledb}


def _place(engine: str, admin: str) -> Place:
    return Place(engine, admin, lambda name: urlsplit(admin)._replace(path=f"/{name}").geturl())


@contextlib.contextmanager
def _database(place: Place, purpose: str = "") -> Iterator[str]:
    name = f"candlewick_bench_{os.getpid()}{purpose}"
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(place.admin, autocommit=True) as conn:
        conn.execute(drop)
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        try:
            url = place.url(name)
            migrate(url, place.engine)
            yield url
        finally:
            conn.execute(drop)


if __name__ == "__main__":
    main()
