"""Clients that hang up, read slowly or not at all, and a database that goes away, in the midst of large answers."""

import asyncio
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import cycle, islice, product
from random import Random
from typing import Any

import httpx
import numpy as np
import psycopg
import pyarrow as pa
import pytest
import uvicorn
import uvloop
from pyarrow import csv

from service import http_protocol
from service.api.app import create_app
from service.api.serving import BULK_READS
from service.bars import MINUTE_MS, to_ms
from service.db.connect import Database
from service.http_protocol import BoundedProtocol
from service.settings import load
from service.timeframes import utc_now
from tests.integration.hostile import (
    BIG,
    MILLION,
    SMALL,
    Peak,
    Process,
    answers,
    asking,
    busy,
    connected,
    exchange,
    million,
    rest,
    serving,
    until,
)
from tests.integration.marketdata import at, filled_with

MB = 1_000_000
FORMS = ("arrow", "csv", "json", "parquet")
WAYS = list(product(FORMS, ("identity", "gzip", "zstd")))


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A million bars of one symbol."""
    with filled_with(request.getfixturevalue(f"{request.param}_server"), million) as one:
        yield one


@pytest.fixture(scope="module")
def watcher(db: Database) -> Iterator[psycopg.Connection[Any]]:
    """Sees what the others do in the database."""
    with closing(psycopg.connect(db.url, autocommit=True)) as conn:
        yield conn


@pytest.fixture(scope="module")
def server(db: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Without a memory for answers."""
    with serving(db, tmp_path_factory.mktemp("serve"), CACHE_MB="0") as one:
        warmed(one)
        yield one


@pytest.fixture(scope="module")
def remembering(db: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """With a memory for answers, of the size that it has where nothing is said."""
    with serving(db, tmp_path_factory.mktemp("serve")) as one:
        warmed(one)
        yield one


def warmed(server: Process) -> None:
    """It has answered in every form once, and loaded what that takes."""
    for form, coding in WAYS:
        small = f"/api/candles/BTCUSD?from=2021-01-01&limit=60000&format={form}"
        assert exchange(server.port, asking(small, "Connection: close", f"Accept-Encoding: {coding}")).status == 200


def whole(form: str, count: int = MILLION) -> str:
    """A question whose answer is so many candles."""
    return f"{BIG}&limit={count}&format={form}"


# Flat memory


@pytest.mark.slow
@pytest.mark.parametrize("form", ["arrow", "csv", "json"])
@pytest.mark.parametrize("memory", [False, True], ids=["without a memory", "with a memory"])
def test_memory_does_not_grow_with_an_answer(server: Process, remembering: Process, form: str, *, memory: bool) -> None:
    """A million candles need what a quarter of a million need: a small part of the answer's own size."""
    server = remembering if memory else server
    growth = []
    for count in (MILLION // 4, MILLION):
        with Peak(server) as peak, closing(connected(server.port)) as one:
            one.sendall(asking(whole(form, count), "Connection: close"))
            size, last = 0, b""
            while part := one.recv(1 << 20):
                size, last = size + len(part), part
            assert last.endswith(b"0\r\n\r\n")
        growth.append(peak.growth)
    assert size > 50 * MB
    assert growth[1] < 24 * MB
    assert growth[1] - growth[0] < 16 * MB


@pytest.mark.parametrize("form", ["arrow", "csv"])
def test_behind_a_long_gap_no_candle_is_lost_or_comes_twice(server: Process, form: str) -> None:
    """A stream takes longer strides where there is nothing, and is back in step as soon as there is."""
    path = f"/api/candles/ETHUSD?from=2010-01-01&to=2023-01-01&format={form}"
    body = httpx.get(f"http://127.0.0.1:{server.port}{path}").content
    table = pa.ipc.open_stream(body).read_all() if form == "arrow" else csv.read_csv(pa.BufferReader(body))
    found = table["ts"].cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()).to_numpy()
    day, rest_of_them = to_ms(at("2016-01-01 00:00")), to_ms(at("2021-01-01 00:00"))
    expected = np.concatenate([day + MINUTE_MS * np.arange(1440), rest_of_them + MINUTE_MS * np.arange(200_000)])
    np.testing.assert_array_equal(found, expected)


# Slow readers


@contextmanager
def slow_readers(server: Process, count: int, *, reading: bool) -> Iterator[list[int]]:
    """Clients that take a kilobyte a second each of a large answer, or nothing; how much each has had."""
    done = threading.Event()
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(connected(server.port, window=4096))) for _ in range(count)]
        for place, (one, (form, coding)) in enumerate(zip(readers, cycle(WAYS), strict=False)):
            one.sendall(asking(f"{whole(form, MILLION - place % 5)}", f"Accept-Encoding: {coding}"))
        had = [0] * count

        def read() -> None:
            while not done.wait(1):
                for place, one in enumerate(readers):
                    had[place] += len(one.recv(1024))

        thread = threading.Thread(target=read)
        if reading:
            thread.start()
        try:
            yield had
        finally:
            done.set()
            if reading:
                thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("reading", [True, False], ids=["a kilobyte a second", "nothing at all"])
def test_slow_readers_hold_up_nobody(server: Process, watcher: psycopg.Connection[Any], *, reading: bool) -> None:
    """Twenty of them: others are answered, no transaction stays open, and memory is bounded."""
    with Peak(server) as peak, slow_readers(server, 20, reading=reading) as had:
        quiet, began = 0, time.monotonic()
        while quiet < 30 or (reading and min(had) < 1000):
            assert time.monotonic() - began < 40, "something is still read, though what lies between is full"
            assert answers(server.port, SMALL) < 1
            time.sleep(0.05)
            states = [state for state, _ in busy(watcher)]
            assert len(states) <= BULK_READS
            assert set(states) <= {"active"}
            quiet = 0 if states else quiet + 1
    assert peak.growth < 20 * 12 * MB
    until("nothing is read for those who are gone", lambda: not busy(watcher))
    assert answers(server.port, SMALL) < 1
    assert " ERROR " not in server.log.read_text()


@pytest.mark.slow
def test_slow_readers_of_the_same_answer_do_not_fill_the_memory_for_answers(remembering: Process) -> None:
    """An answer that is asked for again is gathered to be kept, for one of its readers only."""
    path = f"{BIG}&format=arrow"
    before = remembering.rss
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(connected(remembering.port))) for _ in range(8)]
        for one in readers:
            one.sendall(asking(path))
        for one in readers:
            size = 0
            while size < 40 * MB:
                size += len(one.recv(1 << 20))
        assert remembering.rss - before < 200 * MB
    assert answers(remembering.port, SMALL) < 1


# Clients that hang up


class Here:
    """The API in a thread of this process, so that its tasks and connections can be counted."""

    def __init__(self, db: Database) -> None:
        chosen = load({"DATABASE_URL": db.url, "ENGINE": db.engine.name}, env_file=None)
        self.db = Database(db.url, db.engine, db.version)
        app = create_app(self.db, chosen, utc_now)
        config = uvicorn.Config(
            app, port=0, http=BoundedProtocol, ws="none", log_config=None, access_log=False, timeout_keep_alive=1
        )
        self._server = uvicorn.Server(config)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.02)
            assert self._thread.is_alive()
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def tasks(self) -> set[str]:
        """What runs in its loop, but for this question."""

        async def found() -> set[str]:
            return {repr(task.get_coro()) for task in asyncio.all_tasks() if task is not asyncio.current_task()}

        return self._ask(found)

    def _ask(self, what: Callable[[], Coroutine[Any, Any, set[str]]]) -> set[str]:
        return asyncio.run_coroutine_threadsafe(what(), self._runner.get_loop()).result(5)

    def _run(self) -> None:
        with self._runner:
            self._runner.run(self._server.serve())


@pytest.fixture
def here(db: Database) -> Iterator[Here]:
    one = Here(db)
    try:
        yield one
    finally:
        one.close()


def hang_up(one: socket.socket, *, rudely: bool) -> None:
    """rudely: with a reset instead of a goodbye."""
    if rudely:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


@pytest.mark.slow
def test_of_clients_that_hang_up_nothing_is_left(
    here: Here, watcher: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """In every form and coding, anywhere in the answer: all connections are back, all tasks over, the log is empty."""
    caplog.set_level(logging.WARNING)
    assert answers(here.port, SMALL) < 5
    until("the first request is over", lambda: not any("run_asgi" in task for task in here.tasks()))
    before = here.tasks()
    dice = Random(7)  # noqa: S311 - for the same test each time
    for place, (form, coding) in enumerate(islice(cycle(WAYS), 60)):
        one = connected(here.port)
        pipelined = asking(SMALL) * (place % 4 == 3)
        one.sendall(asking(whole(form), f"Accept-Encoding: {coding}") + pipelined)
        left = dice.choice([0, 1, 300, 70_000, dice.randrange(3 * MB)])
        while left > 0:
            left -= len(one.recv(min(left, 1 << 16)))
        time.sleep(dice.choice([0, 0, 0.002, 0.02]))
        hang_up(one, rudely=place % 2 == 0)
    until("nothing is read for those who are gone", lambda: not busy(watcher), 2)
    until("all tasks are over", lambda: here.tasks() == before, 2)
    stats = here.db.pool.get_stats()
    assert stats["pool_available"] == stats["pool_size"]
    assert stats.get("requests_waiting", 0) == 0
    assert stats.get("connections_lost", 0) == 0
    assert answers(here.port, SMALL) < 1
    assert [record.getMessage() for record in caplog.records] == []


def test_a_request_has_to_come_in_time(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one is refused and hung up on, a silent connection is closed; an answer may take as long as it takes."""
    monkeypatch.setattr(http_protocol, "LONGEST_WAIT", 0.3)
    halves = (asking(SMALL)[:-2], asking(SMALL), asking(SMALL, "Content-Length: 5") + b"hell")
    with ExitStack() as stack:
        reader, silent, half, *others = [stack.enter_context(closing(connected(here.port))) for _ in range(6)]
        reader.sendall(asking(whole("csv", MILLION // 4)))
        half.sendall(b"GET /health HTTP/1.1\r\nX: y")
        for one, sent in zip(others, halves, strict=True):
            one.sendall(asking(SMALL))
            assert one.recv(100_000).startswith(b"HTTP/1.1 200 OK")
            one.sendall(sent)
        assert rest(silent) == (b"", "eof")
        found = rest(half)
        assert (found.status, found.ended) == (408, "eof")
        assert b'{"error":"bad_request","message":"a request has to be there within' in found.body
        assert [b"HTTP/1.1 408" in rest(one).raw for one in others] == [True, False, True]
        assert rest(reader).raw.endswith(b"0\r\n\r\n")


# A database that goes away


@contextmanager
def killing(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Whoever reads candles is cut off from the database."""
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.001):
            with suppress(psycopg.Error):
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND state = 'active' AND query LIKE '%%string_agg%%'"
                )

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "coding"), [("csv", "identity"), ("json", "gzip"), ("arrow", "zstd"), ("parquet", "")]
)
def test_without_its_database_an_answer_is_visibly_broken(
    server: Process, watcher: psycopg.Connection[Any], form: str, coding: str
) -> None:
    """Its transfer has no end; the log tells why in one line, without a traceback, and the server goes on."""
    told = server.log.stat().st_size
    with closing(connected(server.port, seconds=20)) as one:
        one.sendall(asking(whole(form), f"Accept-Encoding: {coding}", "Connection: close"))
        assert one.recv(1000).startswith(b"HTTP/1.1 200 OK")
        with killing(watcher):
            found = rest(one)
    assert found.ended in {"eof", "reset"}
    assert not found.raw.endswith(b"0\r\n\r\n")
    until("it answers again", lambda: exchange(server.port, asking(SMALL, "Connection: close")).status == 200)
    lines = server.log.read_text()[told:].splitlines()
    (line,) = [line for line in lines if " ERROR service." in line]
    assert f"candles of BTCUSD as {form} were broken off" in line
    assert all(line.startswith("20") for line in lines), lines
