"""The part of `make bench` about reading over HTTP: each figure beside what the database gives a bare reader.

The bars are invented, and stored, refreshed and compressed by the project's own means. Clients keep their connection,
ask for no compression and read whole bodies; server, database and client share the processors.
"""

import asyncio
import http.client
import itertools
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import urlsplit

import litestar
import msgspec
import numpy as np
import psycopg
import uvloop
from psycopg import AsyncConnection, sql

from service import coverage, ledger, server
from service.bars import Bars, from_ms, to_ms
from service.coverage import MINUTE, Piece
from service.db.connect import Database, connect
from service.db.preflight import aged, checked
from service.instruments import SEED
from service.ranges import Range, Ranges
from service.settings import load
from service.store import Answered, store
from service.timeframes import Timeframe, utc_now
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
SECONDS = 4.0
"""How long a rate is measured."""
median = statistics.median


class Absent(Exception):
    """What is to be measured is not there, or fails."""


class Server(NamedTuple):
    """A `candlewick serve` of its own, without a worker."""

    url: str
    pid: int


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
            bare = partial(_bare, conn, _query(timeframe).as_bytes(conn), (BIG, end - 500 * timeframe.length, end))
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
    body = Client(bench.api.url).ask(_path(*one)).read()
    with _file(body) as content, _file(json.dumps([one]).encode()) as asked, _child("constant", content) as child:
        constant = _line(child).split()[3]
        found = [(_rate(bench.api.url, asked), _rate(constant, asked)) for _ in range(bench.runs)]
    who = "wrk" if shutil.which("wrk") else "our own loader"
    _say(f"500 closed candles, 64 connections ({who})", found, "constant bytes", ">= 0.5", "/s")


def scattered(bench: Bench) -> None:
    """Ranges drawn by chance, over HTTP and from the database alone."""
    found = []
    for number in range(bench.runs):
        with _file(json.dumps(_drawn(bench.end, number)).encode()) as asked:
            ours = _said("load", bench.api.url, "8", asked)
            limit = max(_said("rows", bench.url, "8", asked, kind) for kind in ("threads", "processes"))
        found.append((ours, limit))
    _say("ranges drawn by chance, 8 connections", found, "the database's own rate", ">= 0.7", "/s")


def symbols(bench: Bench) -> None:
    """The last bar of ten thousand symbols."""
    with bench.databases("symbols") as url:
        now = asyncio.run(_fill_symbols(url, bench.engine))
        with serving(url, bench.engine) as one, bare_reader(url) as bare:
            ask = partial(Client(one.url).get, "/api/latest?timeframe=1m")
            last = partial(_last, bare, now - timedelta(days=731), now - timedelta(days=5))
            first = _seconds(ask)
            last()
            found = [(_seconds(ask), last()) for _ in range(5 * bench.runs)]
    _say(f"last bar of {bench_sync.MANY:,} symbols", found, "LATERAL", "<= 1.5")
    print(f"    the first time {first * 1000:,.0f} ms", flush=True)


def beside(bench: Bench) -> None:
    """Small reads while the same process answers large ones, and while an export or a backfill runs beside it."""
    api = Client(bench.api.url)
    with tempfile.TemporaryDirectory(prefix="cw-") as folder:
        loads: Mapping[str, Callable[[int], AbstractContextManager[subprocess.Popen[str]]]] = {
            "a million bars as Arrow": lambda _: _child("drain", bench.api.url, _bars(bench, MILLION, "arrow")),
            "a million bars as JSON": lambda _: _child("drain", bench.api.url, _bars(bench, MILLION, "json")),
            "an export": lambda number: _service(bench, "export", BIG, "--days", "3600", "--out", f"{folder}/{number}"),
            "a backfill": lambda number: _service(bench, "backfill", SEED[number].symbol, "--days", "1400"),
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


async def _fill_symbols(url: str, engine: str) -> datetime:
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
    return aged(checked(url, engine), load(_environment(url, engine), None))


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


def _environment(url: str, engine: str, provider: str = "http://127.0.0.1:9") -> dict[str, str]:
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
    with _process([sys.executable, "-m", "service", "serve"], _environment(url, engine)) as child:
        line = _line(child)
        if " on http://" not in line:
            raise Absent(line)
        yield Server(line.split()[3], child.pid)


def _service(bench: Bench, *words: str) -> AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "service", *words]
    return _process(command, _environment(bench.url, bench.engine, bench.provider))


def _child(*words: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return _process([sys.executable, "-m", "tests.bench_reads", *words], {})


def _said(*words: str) -> float:
    with _child(*words) as child:
        said = child.communicate()[0]
    try:
        return float(said)
    except ValueError:
        raise Absent(said) from None


@contextmanager
def _process(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=os.environ | env, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True
    ) as child:
        try:
            yield child
        finally:
            child.terminate()
            child.wait(20)


def _line(child: subprocess.Popen[str]) -> str:
    line = child.stdout.readline() if child.stdout else ""
    if not line:
        raise Absent(f"{child.args!r} ended")
    return line


class Client:
    """One connection that is kept."""

    def __init__(self, url: str) -> None:
        self._conn = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
        self._buffer = bytearray(1 << 20)

    def ask(self, path: str) -> http.client.HTTPResponse:
        """The answer, still to be read."""
        try:
            response = self._ask(path)
        except http.client.RemoteDisconnected:  # it had been idle for long
            self._conn.close()
            response = self._ask(path)
        if response.status != 200:
            raise Absent(f"HTTP {response.status} to {path}: {response.read().decode()[:200]}")
        return response

    def _ask(self, path: str) -> http.client.HTTPResponse:
        self._conn.putrequest("GET", path, skip_accept_encoding=True)
        self._conn.endheaders()
        return self._conn.getresponse()

    def get(self, path: str) -> int:
        """Read the whole answer and forget it; its size in bytes."""
        response, size = self.ask(path), 0
        while got := response.readinto(self._buffer):
            size += got
        return size


@contextmanager
def bare_reader(url: str) -> Iterator[Callable[[str], float]]:
    """How many seconds a statement takes: with psql, which writes to nowhere, or psycopg where that is faster."""
    command = ["psql", "-qXAt", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, url]
    with psycopg.connect(url, autocommit=True, options="-c jit=off") as conn:
        if shutil.which("psql") is None:
            yield partial(_with_psycopg, conn)
            return
        with _process(command, {"PGOPTIONS": "-c jit=off"}) as psql:
            yield lambda statement: min(_with_psql(psql, statement), _with_psycopg(conn, statement))


def _with_psql(psql: subprocess.Popen[str], statement: str) -> float:
    assert psql.stdin is not None
    began = time.perf_counter()
    psql.stdin.write(f"{statement};\n\\echo done\n")
    psql.stdin.flush()
    _line(psql)
    return time.perf_counter() - began


def _with_psycopg(conn: psycopg.Connection[Any], statement: str) -> float:
    began = time.perf_counter()
    with conn.cursor() as cursor:
        if statement.startswith("COPY"):
            with cursor.copy(statement.encode()) as copy:
                for _ in copy:
                    pass
        else:
            cursor.execute(statement.encode()).fetchall()
    return time.perf_counter() - began


class _Row(msgspec.Struct, gc=False):
    t: int
    o: float
    h: float
    l: float  # noqa: E741 - the name in the API
    c: float
    v: float | None
    vw: float | None
    n: int | None


def _query(timeframe: Timeframe) -> sql.Composed:
    return sql.SQL(_ROWS).format(sql.Identifier("market_data", timeframe.table))


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


_ROWS = (
    "SELECT (extract(epoch FROM ts) * 1000)::bigint, open, high, low, close, volume, vwap, trades"
    " FROM {} WHERE symbol = %s AND ts >= %s AND ts < %s ORDER BY ts"
)
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


def _path(symbol: str, timeframe: str, start: int, end: int) -> str:
    return f"/api/candles/{symbol}?timeframe={timeframe}&from={start}&to={end}&limit=500"


def _rate(url: str, asked: str) -> float:
    """Answers a second to one request again and again, at 64 connections."""
    if shutil.which("wrk") is None:
        return _said("load", url, "64", asked)
    (one,) = json.loads(Path(asked).read_bytes())
    command = ["wrk", "-t1", "-c64", f"-d{SECONDS:.0f}s", f"{url}{_path(*one)}"]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.search(r"Requests/sec: *([0-9.]+)", said)
    if found is None or "Non-2xx" in said or "Socket errors" in said:
        raise Absent(said)
    return float(found[1])


class _Loader(asyncio.Protocol):
    """One of the connections of our own loader: asks, reads the whole answer, asks again."""

    def __init__(self, paths: Iterator[str], failed: asyncio.Future[None]) -> None:
        self._paths, self._failed = paths, failed
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._ask()

    def _ask(self) -> None:
        self._head, self._left = b"", -1
        self._transport.write(b"GET %s HTTP/1.1\r\nHost: bench\r\n\r\n" % next(self._paths).encode())

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            length = re.search(rb"(?i)content-length: *([0-9]+)", head)
            if length is None or b" 200 " not in head[:16]:
                self._failed.set_exception(Absent(self._head.decode()[:300]))
                return
            self._left = int(length[1])
        self._left -= len(data)
        if not self._left:
            self.answers += 1
            self._ask()


async def _load(url: str, connections: int, asked: bytes) -> float:
    (host, port), loop = urlsplit(url).netloc.split(":"), asyncio.get_running_loop()
    paths = itertools.cycle(_path(*one) for one in json.loads(asked))
    failed: asyncio.Future[None] = loop.create_future()
    loaders = []
    began = time.perf_counter()
    for _ in range(connections):
        _, loader = await loop.create_connection(lambda: _Loader(paths, failed), host, int(port))
        loaders.append(loader)
    await asyncio.wait([failed], timeout=SECONDS)
    if failed.done():
        failed.result()
    return sum(one.answers for one in loaders) / (time.perf_counter() - began)


def _rows_rate(url: str, connections: int, asked: Path, pool: type[Executor]) -> float:
    rows = json.loads(asked.read_bytes())
    with pool(connections) as workers:  # type: ignore[call-arg]
        return sum(
            workers.map(_read_rows, itertools.repeat(url), [rows[place::connections] for place in range(connections)])
        )


def _read_rows(url: str, asked: Sequence[tuple[str, str, int, int]]) -> float:
    """How many of these reads one connection does in a second."""
    with connect(url) as conn:
        queries = {timeframe.value: _query(timeframe).as_bytes(conn) for timeframe in Timeframe}
        began = time.perf_counter()
        for count, (symbol, timeframe, start, end) in enumerate(asked):
            if (passed := time.perf_counter() - began) > SECONDS:
                return count / passed
            span = (symbol, from_ms(start), from_ms(end))
            conn.execute(queries[timeframe], span, binary=True, prepare=True).fetchall()
    raise Absent("too few reads were drawn")


def _constant(body: Path) -> None:
    """Serve these bytes with what serves ours."""
    content = body.read_bytes()

    @litestar.get("/api/candles/{symbol:str}", media_type="application/json")
    async def answer(symbol: str) -> bytes:  # noqa: ARG001 - as ours
        return content

    app = litestar.Litestar([answer], openapi_config=None, logging_config=None)
    chosen = load({"PORT": "0"}, None)
    with server.listening(chosen) as (listener, url), mock.patch("service.api.app.create_app", return_value=app):
        server.answer(mock.Mock(version="constant"), chosen, listener, url)


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(prefix="cw-") as file:
        file.write(content)
        file.flush()
        yield file.name


def _main(words: Sequence[str]) -> None:
    """A child of the measurements above."""
    match words:
        case ["drain", url, path]:
            api = Client(url)
            while True:
                api.get(path)
        case ["load", url, connections, asked]:
            print(uvloop.run(_load(url, int(connections), Path(asked).read_bytes())))
        case ["rows", url, connections, asked, kind]:
            pool = ThreadPoolExecutor if kind == "threads" else ProcessPoolExecutor
            print(_rows_rate(url, int(connections), Path(asked), pool))
        case ["constant", body]:
            _constant(Path(body))


if __name__ == "__main__":
    _main(sys.argv[1:])
