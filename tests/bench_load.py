"""What asks in the benchmarks about reading, in processes of its own where it would be in the way of others."""

import asyncio
import http.client
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import litestar
import psycopg
import uvloop
from psycopg import sql

from service import server
from service.bars import from_ms
from service.db.connect import connect
from service.settings import load
from service.timeframes import Timeframe
from tests.bench_bars import (
    Absent,
    line_of,
    process,
)

SECONDS = 4.0
"""How long a rate is measured."""
WARM = 2.0
"""Seconds before that in which both sides fill their caches: a connection learns of hundreds of chunks."""
ROWS = (
    "SELECT (extract(epoch FROM ts) * 1000)::bigint, open, high, low, close, volume, vwap, trades"
    " FROM {} WHERE symbol = %s AND ts >= %s AND ts < %s ORDER BY ts"
)


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
        with process(command, {"PGOPTIONS": "-c jit=off"}) as psql:
            yield lambda statement: min(_with_psql(psql, statement), _with_psycopg(conn, statement))


def _with_psql(psql: subprocess.Popen[str], statement: str) -> float:
    assert psql.stdin is not None
    began = time.perf_counter()
    psql.stdin.write(f"{statement};\n\\echo done\n")
    psql.stdin.flush()
    line_of(psql)
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


def start_child(*words: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return process([sys.executable, "-m", "tests.bench_load", *words], {})


def said_by(*words: str) -> float:
    with start_child(*words) as child:
        said = child.communicate()[0]
    try:
        return float(said)
    except ValueError:
        raise Absent(said) from None


def query_of(timeframe: Timeframe) -> sql.Composed:
    return sql.SQL(ROWS).format(sql.Identifier("market_data", timeframe.table))


def path_of(symbol: str, timeframe: str, start: int, end: int) -> str:
    return f"/api/candles/{symbol}?timeframe={timeframe}&from={start}&to={end}&limit=500"


def rate(url: str, asked: str) -> float:
    """Answers a second to one request again and again, at 64 connections."""
    if shutil.which("wrk") is None:
        return said_by("load", url, "64", asked)
    (one,) = json.loads(Path(asked).read_bytes())
    command = ["wrk", "-t1", "-c64", f"-d{SECONDS:.0f}s", f"{url}{path_of(*one)}"]
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
    paths = itertools.cycle(path_of(*one) for one in json.loads(asked))
    failed: asyncio.Future[None] = loop.create_future()
    loaders = []
    for _ in range(connections):
        _, loader = await loop.create_connection(lambda: _Loader(paths, failed), host, int(port))
        loaders.append(loader)
    await asyncio.wait([failed], timeout=WARM)
    began, before = time.perf_counter(), sum(one.answers for one in loaders)
    await asyncio.wait([failed], timeout=SECONDS)
    if failed.done():
        failed.result()
    return (sum(one.answers for one in loaders) - before) / (time.perf_counter() - began)


def _rows_rate(url: str, connections: int, asked: Path, pool: type[Executor]) -> float:
    rows = json.loads(asked.read_bytes())
    with pool(connections) as workers:  # type: ignore[call-arg]
        return sum(
            workers.map(_read_rows, itertools.repeat(url), [rows[place::connections] for place in range(connections)])
        )


def _read_rows(url: str, asked: Sequence[tuple[str, str, int, int]]) -> float:
    """How many of these reads one connection does in a second."""
    with connect(url) as conn:
        queries = {timeframe.value: query_of(timeframe).as_bytes(conn) for timeframe in Timeframe}
        began, before = time.perf_counter() + WARM, 0
        for count, (symbol, timeframe, start, end) in enumerate(asked):
            passed = time.perf_counter() - began
            if passed < 0:
                before = count
            elif passed > SECONDS:
                return (count - before) / passed
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
def file_of(content: bytes) -> Iterator[str]:
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
