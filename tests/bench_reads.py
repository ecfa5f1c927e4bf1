"""The part of `make bench` about reading over HTTP: each figure beside what the database gives a bare reader.

The bars are invented, and stored, refreshed and compressed by the project's own means. Clients keep their connection,
ask for no compression and read whole bodies; server, database and client share the processors.
"""

import asyncio
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psycopg

from service.bars import to_ms
from service.coverage import MINUTE
from service.db.connect import connect
from service.instruments import SEED
from service.timeframes import Timeframe
from tests import bench_sync
from tests.bench_bars import (
    BIG,
    COINS,
    LONG,
    MILLION,
    SHORT,
    Absent,
    Server,
    environment,
    fill,
    fill_symbols,
    line_of,
    process,
    serving,
)
from tests.bench_load import SECONDS, Client, bare_reader, file_of, path_of, query_of, rate, said_by, start_child

median = statistics.median


class Bench(NamedTuple):
    """What the measurements work with."""

    databases: Callable[[str], AbstractContextManager[str]]
    """Makes a migrated one of this name."""
    url: str
    engine: str
    provider: str
    runs: int
    api: Server
    end: datetime
    """Of the bars: a few minutes before they were made."""


def run(
    databases: Callable[[str], AbstractContextManager[str]],
    engine: str,
    provider: str,
    runs: int,
    only: Collection[str],
) -> None:
    """Print the chosen measurements, all of them where none is named."""
    with databases("long") as url:
        end = asyncio.run(fill(url, engine, {} if set(only) == {"symbols"} else LONG))
        with serving(url, engine) as api:
            bench = Bench(databases, url, engine, provider, runs, api, end)
            for name, measure in MEASURES.items():
                if name in (only or MEASURES):
                    try:
                        measure(bench)
                    except Absent as exc:
                        print(f"  {name}: NOT MEASURED, {exc}", flush=True)


def latest(bench: Bench) -> None:
    """The latest candles, at one connection."""
    api = Client(bench.api.url)
    with connect(bench.url) as conn:
        for timeframe in Timeframe:
            end = timeframe.ceil(bench.end)
            bare = partial(_bare, conn, query_of(timeframe).as_bytes(conn), (BIG, end - 500 * timeframe.length, end))
            found = [_both(partial(api.get, _latest(timeframe, 500)), bare) for _ in range(bench.runs)]
            _say(f"latest 500 of {timeframe.value}", found, "query and encoding", "<= 1.5")


def history(bench: Bench) -> None:
    """The same from ten years and from thirty days, as many as the latter have."""
    with bench.databases("short") as url:
        asyncio.run(fill(url, bench.engine, dict.fromkeys(COINS, SHORT)))
        with serving(url, bench.engine) as short:
            many, few = Client(bench.api.url), Client(short.url)
            for timeframe in Timeframe:
                count = min(500, timedelta(days=SHORT) // timeframe.length - 2)
                path = _latest(timeframe, count)
                found = [_both(partial(many.get, path), partial(few.get, path)) for _ in range(bench.runs)]
                _say(f"latest {count} of {timeframe.value} of 10 years", found, "of 30 days", "<= 1.3")


def arrow(bench: Bench) -> None:
    """A million bars, each time other ones, and what they take of the server's memory."""
    api = Client(bench.api.url)
    first = _seconds(partial(api.get, _bars(bench, MILLION, "arrow")))
    found = []
    with bare_reader(bench.url) as bare:
        bare(_COPY.format(BIG, bench.end - MILLION * MINUTE, bench.end))
        for number in range(1, bench.runs + 1):
            end = bench.end - number * MINUTE
            ours = _seconds(partial(api.get, _bars(bench, MILLION, "arrow", end=end)))
            found.append((ours, bare(_COPY.format(BIG, end - MILLION * MINUTE, end))))
    _say("1,000,000 bars as Arrow", found, "COPY (FORMAT binary)", "<= 1.5")
    print(f"    the first time {first * 1000:,.0f} ms")
    for count in (250_000, MILLION):
        with serving(bench.url, bench.engine) as fresh:
            growth = _growth(fresh, _bars(bench, count, "arrow"))
        print(f"    peak memory of a fresh server with {count:,} bars: + {growth:.0f} MB", flush=True)


def formats(bench: Bench) -> None:
    """The same bars otherwise."""
    api = Client(bench.api.url)
    for name in ("json", "csv", "parquet"):
        size, found = 0, []
        for number in range(bench.runs):
            end = bench.end - number * MINUTE
            began = time.perf_counter()
            size = api.get(_bars(bench, MILLION, name, end=end))
            ours = time.perf_counter() - began
            found.append((ours, _seconds(partial(api.get, _bars(bench, MILLION, "arrow", end=end)))))
        _say(f"1,000,000 bars as {name}, {size / 1e6:.0f} MB", found, "as Arrow", "none")


def cached(bench: Bench) -> None:
    """One answer of closed candles again and again, and a handler that has its bytes ready."""
    end = Timeframe.H1.floor(bench.end - timedelta(days=40))
    one = (BIG, Timeframe.H1.value, to_ms(end - 500 * Timeframe.H1.length), to_ms(end))
    body = Client(bench.api.url).ask(path_of(*one)).read()
    with (
        file_of(body) as content,
        file_of(json.dumps([one]).encode()) as asked,
        start_child("constant", content) as child,
    ):
        constant = line_of(child).split()[3]
        found = [(rate(bench.api.url, asked), rate(constant, asked)) for _ in range(bench.runs)]
    who = "wrk" if shutil.which("wrk") else "our own loader"
    _say(f"500 closed candles, 64 connections ({who})", found, "constant bytes", ">= 0.5", "/s")


def scattered(bench: Bench) -> None:
    """Ranges drawn by chance, over HTTP and from the database alone."""
    found = []
    for number in range(bench.runs):
        with file_of(json.dumps(_drawn(bench.end, number)).encode()) as asked:
            ours = said_by("load", bench.api.url, "8", asked)
            limit = max(said_by("rows", bench.url, "8", asked, kind) for kind in ("threads", "processes"))
        found.append((ours, limit))
    _say("ranges drawn by chance, 8 connections", found, "the database's own rate", ">= 0.7", "/s")


def symbols(bench: Bench) -> None:
    """The last bar of ten thousand symbols."""
    with bench.databases("symbols") as url:
        now = asyncio.run(fill_symbols(url, bench.engine))
        with serving(url, bench.engine) as one, bare_reader(url) as bare:
            ask = partial(Client(one.url).get, "/api/latest?timeframe=1m")
            last = partial(_last, bare, now - timedelta(days=731), now - timedelta(days=5))
            first = _seconds(ask)
            last()
            found, written = [], []
            for _ in range(5 * bench.runs):
                found.append((_seconds(ask), last()))
                with connect(url) as conn:  # as a write of one symbol's bars does
                    conn.execute("UPDATE market_data.sync_state SET symbol = symbol WHERE symbol = 'COIN1'")
                written.append((_seconds(ask), last()))
    _say(f"last bar of {bench_sync.MANY:,} symbols, nothing new", found, "LATERAL", "<= 1.5")
    _say("  the same right after a write", written, "LATERAL", "<= 1.5")
    print(f"    the first time {first * 1000:,.0f} ms", flush=True)


def beside(bench: Bench) -> None:
    """Small reads while the same process answers large ones, and while an export or a backfill runs beside it."""
    api = Client(bench.api.url)
    with tempfile.TemporaryDirectory(prefix="cw-") as folder:
        loads: Mapping[str, Callable[[int], AbstractContextManager[subprocess.Popen[str]]]] = {
            "a million bars as Arrow": lambda _: start_child("drain", bench.api.url, _bars(bench, MILLION, "arrow")),
            "a million bars as JSON": lambda _: start_child("drain", bench.api.url, _bars(bench, MILLION, "json")),
            "an export": lambda number: _service(bench, "export", BIG, "--days", "3600", "--out", f"{folder}/{number}"),
            "a backfill": lambda number: _service(bench, "backfill", SEED[number].symbol, "--days", "1400"),
            "two processes that only compute": lambda _: process([sys.executable, "-c", _COMPUTING], {}),
        }
        for what, start in loads.items():
            found = [_slower(api, partial(start, number)) for number in range(bench.runs)]
            _say(f"p99 of the latest 500 of 1h beside {what}", found, "idle", "<= 3")


MEASURES: Mapping[str, Callable[[Bench], None]] = {
    "latest": latest,
    "history": history,
    "arrow": arrow,
    "formats": formats,
    "cached": cached,
    "random": scattered,
    "symbols": symbols,
    "beside": beside,
}


def _service(bench: Bench, *words: str) -> AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "service", *words]
    return process(command, environment(bench.url, bench.engine, bench.provider))


class _Row(msgspec.Struct, gc=False):
    t: int
    o: float
    h: float
    l: float  # noqa: E741 - the name in the API
    c: float
    v: float | None
    vw: float | None
    n: int | None


def _bare(conn: psycopg.Connection[Any], query: bytes, span: Sequence[Any]) -> None:
    rows = conn.execute(query, span, binary=True, prepare=True).fetchall()
    msgspec.json.encode(list(itertools.starmap(_Row, rows)))


def _seconds(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


def _both(ours: Callable[[], object], limit: Callable[[], object]) -> tuple[float, float]:
    """The medians of a hundred each, in turn."""
    times = [(_seconds(ours), _seconds(limit)) for _ in range(110)][10:]
    return median(one for one, _ in times), median(other for _, other in times)


def _p99(api: Client) -> float:
    times, until = [], time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        times.append(_seconds(partial(api.get, _latest(Timeframe.H1, 500))))
        time.sleep(0.005)
    return statistics.quantiles(times, n=100)[98]


def _slower(api: Client, start: Callable[[], AbstractContextManager[subprocess.Popen[str]]]) -> tuple[float, float]:
    idle = _p99(api)
    with start() as child:
        time.sleep(1)
        busy = _p99(api)
        if child.poll() is not None:
            raise Absent(f"{child.args!r} ended too soon: {child.communicate()[0]}")
    return busy, idle


def _growth(one: Server, path: str) -> float:
    """By how many MB the most memory that an answer took exceeds what was in use before it; Linux only."""
    api, process = Client(one.url), Path(f"/proc/{one.pid}")
    api.get(_latest(Timeframe.M1, 500))
    (process / "clear_refs").write_text("5")
    before = _memory(process, "VmRSS")
    api.get(path)
    return _memory(process, "VmHWM") - before


def _memory(process: Path, name: str) -> float:
    return int((process / "status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


def _say(what: str, found: Sequence[tuple[float, float]], limit: str, aim: str, unit: str = "ms") -> None:
    ours, theirs = (median(column) * (1000 if unit == "ms" else 1) for column in zip(*found, strict=True))
    ratios = [one / other for one, other in found]
    digits = 2 if min(ours, theirs) < 100 else 0
    print(
        f"  {what}: {ours:,.{digits}f} {unit}, {limit} {theirs:,.{digits}f} {unit}:"
        f" x {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}; aim {aim})",
        flush=True,
    )


_COMPUTING = """
import os
parent = os.getpid()
child = os.fork()
while child or os.getppid() == parent:
    pass
"""
_COPY = (
    "COPY (SELECT ts, open, high, low, close, volume, vwap, trades FROM market_data.candles_1m"
    " WHERE symbol = '{}' AND ts >= '{}' AND ts < '{}' ORDER BY ts) TO STDOUT (FORMAT binary)"
)
_LAST = (
    "SELECT s.symbol, c.* FROM market_data.sync_state AS s, LATERAL ("
    " SELECT ts, open, high, low, close, volume, vwap, trades FROM market_data.candles_1m AS c"
    " WHERE c.symbol = s.symbol AND c.ts >= {} ORDER BY ts DESC LIMIT 1) AS c WHERE s.last_bar {}"
)


def _last(bare: Callable[[str], float], long_ago: datetime, lately: datetime) -> float:
    """The faster of one bound for all, and one for those with bars lately beside their own for the others."""
    recent, silent = _LAST.format(f"'{lately}'", f">= '{lately}'"), _LAST.format("s.last_bar", f"< '{lately}'")
    return min(bare(_LAST.format(f"'{long_ago}'", "IS NOT NULL")), bare(f"{recent} UNION ALL {silent}"))


def _latest(timeframe: Timeframe, count: int) -> str:
    return f"/api/candles/{BIG}?timeframe={timeframe.value}&limit={count}"


def _bars(bench: Bench, count: int, form: str, end: datetime | None = None) -> str:
    stop = end or bench.end
    limit = f"&limit={count}" if form == "json" else ""
    return f"/api/candles/{BIG}?timeframe=1m&from={to_ms(stop - count * MINUTE)}&to={to_ms(stop)}&format={form}{limit}"


def _drawn(end: datetime, seed: int) -> list[tuple[str, str, int, int]]:
    """Symbol, timeframe and range of reads that are not repeated: 10 to 500 candles anywhere in the history."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    found = []
    for _ in range(40_000):
        symbol, timeframe = dice.choice(COINS), dice.choice(list(Timeframe))
        there = timedelta(days=LONG[symbol]) // timeframe.length
        count = dice.randint(10, min(500, there - 1))
        start = timeframe.ceil(end - timedelta(days=LONG[symbol])) + dice.randrange(there - count) * timeframe.length
        found.append((symbol, timeframe.value, to_ms(start), to_ms(start + count * timeframe.length)))
    return found
