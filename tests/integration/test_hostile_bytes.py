"""Whatever bytes reach a server: a refusal or an answer, the connection closed, its memory bounded, and it goes on."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from service.db.connect import Database
from service.http_protocol import LONGEST_HEAD, MOST_WAITING
from tests.integration.hostile import Answer, Process, answers, asking, connected, exchange, rest, serving
from tests.integration.marketdata import filled

ONE = "/api/candles/EURUSD?from=2024-03-04&to=2024-03-05&limit=10"
STREAM = "/api/candles/EURUSD?from=2022-03-01&limit=900000&fill=null"
"""Some 60 MB, nulls most of it."""
MB = 1_000_000


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    with filled(request.getfixturevalue(f"{request.param}_server")) as one:
        yield one


@pytest.fixture(scope="module")
def server(db: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """For all tests: what one of them does to it, the next one sees."""
    with serving(db, tmp_path_factory.mktemp("serve")) as one:
        answers(one.port, ONE)
        yield one


@pytest.fixture(autouse=True)
def _goes_on(server: Process) -> Iterator[None]:
    """After each test the server answers, and has logged no failure."""
    yield
    assert answers(server.port, ONE) < 5
    assert " ERROR " not in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def refused(answer: Answer, *statuses: int) -> None:
    """In the one shape of all refusals, and the connection is closed."""
    assert answer.status in statuses, answer.raw[:500]
    assert b"content-type: application/json" in answer.raw
    assert set(json.loads(answer.body)) == {"error", "message", "allowed"}
    assert answer.ended in {"eof", "reset"}


NO_HTTP = {
    "random bytes": bytes(n * n * 7 % 251 for n in range(5000)),
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a colon missing": b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "bytes that no path has": b"GET /api/candles/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel": b"CONNECT a:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length and chunks": asking("/", "Content-Length: 1", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "a negative length": b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a length beyond all numbers": b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
    "a path of 70 kB at once": asking("/" + "a" * 70_000),
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_http_is_refused_in_the_one_shape(server: Process, sent: bytes) -> None:
    refused(exchange(server.port, sent), 400)


@pytest.mark.parametrize(
    "sent",
    [
        asking("/api/candles?symbols=" + ",".join(f"EURUS{n}" for n in range(10_000))),
        asking(f"{ONE}&x=" + "a" * MB),
        asking(ONE, "X: " + "a" * MB),
        asking(ONE, *[f"X-{n}: {n}" for n in range(100_000)]),
    ],
    ids=["ten thousand symbols", "an address of 1 MB", "a header of 1 MB", "100,000 headers"],
)
def test_a_head_that_is_too_long_is_refused(server: Process, sent: bytes) -> None:
    """Or the connection is reset before all of it was sent: then the refusal may be lost."""
    found = exchange(server.port, sent)
    if found.raw or found.ended != "reset":
        refused(found, 400, 431)


def test_a_long_head_within_the_bounds_is_read(server: Process) -> None:
    found = exchange(server.port, asking(ONE, "Connection: close", "X: " + "a" * (LONGEST_HEAD - 1000)))
    assert (found.status, found.ended) == (200, "eof")


ENDLESS = {
    "an address": (b"GET /", b"a" * 10_000),
    "a header": (b"GET / HTTP/1.1\r\nX: ", b"a" * 10_000),
    "headers": (b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 2000),
    "headers behind a body": (asking(ONE, "Transfer-Encoding: chunked") + b"0\r\n", b"X: y\r\n" * 2000),
    "a header behind a body": (asking(ONE, "Transfer-Encoding: chunked") + b"0\r\nX: ", b"a" * 10_000),
}


@pytest.mark.parametrize(("first", "then"), ENDLESS.values(), ids=ENDLESS)
def test_what_never_ends_is_cut_off(server: Process, first: bytes, then: bytes) -> None:
    """Before it has sent a megabyte."""
    with closing(connected(server.port)) as one:
        one.sendall(first)
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            _send_slowly(one, then * 400)


def _send_slowly(one: socket.socket, sent: bytes) -> None:
    """In pieces."""
    for place in range(0, len(sent), 10_000):
        one.sendall(sent[place : place + 10_000])
        time.sleep(0.001)


@pytest.mark.parametrize("coding", ["Content-Length: 99999999999", "Transfer-Encoding: chunked"])
def test_an_endless_body_is_not_kept(server: Process, coding: str) -> None:
    """A body of a GET means nothing: the answer does not wait for it."""
    before = server.rss
    part = b"a" * 100_000 if "Length" in coding else b"186a0\r\n" + b"a" * 100_000 + b"\r\n"
    with closing(connected(server.port)) as one:
        one.sendall(asking(ONE, coding))
        assert one.recv(1000).startswith(b"HTTP/1.1 200 OK")
        for _ in range(300):
            one.sendall(part)
    assert server.rss - before < 10 * MB


def test_two_hundred_huge_requests_leave_no_memory_behind(server: Process) -> None:
    sent = [
        asking(ONE, "X: " + "a" * MB),
        asking("/" + "a" * MB),
        asking(ONE, "Connection: close", "Accept: " + "a" * 60_000),
        os.urandom(MB),
    ]
    for one in sent:
        exchange(server.port, one)
    before = server.rss
    for place in range(200):
        exchange(server.port, sent[place % len(sent)])
    assert server.rss - before < 20 * MB


def test_questions_with_endless_variety_are_not_remembered(server: Process) -> None:
    """A header of 50 kB is part of what an answer is kept by, and would cost more than the answer."""
    before = server.rss
    with closing(connected(server.port)) as one:
        for place in range(1500):
            one.sendall(asking(ONE, f"Accept-Encoding: x{place};q=0," + "y" * 50_000))
            found = one.recv(100_000)
            while not found.endswith(b"}"):
                found += one.recv(100_000)
            assert found.startswith(b"HTTP/1.1 200 OK")
    assert server.rss - before < 20 * MB


def test_half_a_request_and_silence_holds_up_nobody(server: Process) -> None:
    """A hundred of them, and as many that never say a word."""
    silent = [connected(server.port) for _ in range(200)]
    for one in silent[::2]:
        one.sendall(asking(ONE)[:-2])
    assert answers(server.port, ONE) < 1
    for one in silent:
        one.close()


def test_pipelined_requests_are_answered_in_their_order(server: Process) -> None:
    limits = [3, 60_000, 1, 7, 2, 3000, 5]
    paths = [f"/api/candles/EURUSD?from=2022-03-01&limit={limit}" for limit in limits]
    found = exchange(server.port, b"".join(map(asking, paths)) + asking("/nowhere", "Connection: close"))
    assert found.raw.count(b"HTTP/1.1 200 OK\r\n") == len(limits)
    assert found.raw.count(b"HTTP/1.1 404 Not Found\r\n") == 1
    counts = [part.count(b'"t":') for part in found.raw.split(b"HTTP/1.1 ")[1:]]
    assert counts == [3, 2880, 1, 7, 2, 2880 + 120, 5, 0]


def test_requests_that_nobody_waits_for_are_not_queued_without_end(server: Process) -> None:
    """Behind a stream that is not read; the connection is cut off, and the stream visibly broken."""
    with closing(connected(server.port, window=4096)) as one:
        one.sendall(asking(STREAM))
        time.sleep(0.3)
        one.sendall(asking("/") * (MOST_WAITING + 10))
        time.sleep(0.3)
        found = rest(one)
    assert found.ended != "silent"
    assert found.raw.count(b"HTTP/1.1") == 1
    assert not found.raw.endswith(b"0\r\n\r\n")


def test_garbage_behind_a_request_breaks_its_answer_and_does_not_get_into_it(server: Process) -> None:
    with closing(connected(server.port, window=4096)) as one:
        one.sendall(asking(STREAM))
        time.sleep(0.3)
        one.sendall(b"\x00" * 100)
        time.sleep(0.3)
        found = rest(one)
    assert found.ended != "silent"
    assert found.raw.count(b"HTTP/1.1") == 1
    assert not found.raw.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("path", [ONE, "/api/candles/EURUSD?from=2022-03-01&limit=3000&format=csv"])
def test_an_old_client_gets_its_answer_and_the_connection_closes(server: Process, path: str) -> None:
    """HTTP/1.0, without a Host."""
    found = exchange(server.port, f"GET {path} HTTP/1.0\r\n\r\n".encode())
    assert (found.status, found.ended) == (200, "eof")
    assert b"\r\nconnection: close\r\n" in found.raw


def test_a_body_on_a_get_is_ignored(server: Process) -> None:
    for lines in (("Content-Length: 5",), ("Expect: 100-continue", "Content-Length: 5")):
        found = exchange(server.port, asking(ONE, "Connection: close", *lines) + b"hello")
        assert (found.status, found.ended, len(json.loads(found.body)["candles"])) == (200, "eof", 10)


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "x"])
def test_a_wish_for_another_protocol_is_passed_over(server: Process, protocol: str) -> None:
    """Without a word in the log, which would tell the operator to install something."""
    size = server.log.stat().st_size
    found = exchange(server.port, asking(ONE, "Connection: Upgrade", f"Upgrade: {protocol}"), seconds=0.5)
    assert found.status == 200
    assert server.log.stat().st_size == size


@pytest.mark.parametrize("host", ["x:99999999", "[::1", "\xff<>", ""])
def test_a_strange_host_is_no_fault_of_ours(server: Process, host: str) -> None:
    sent = f"GET /nowhere HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1")
    refused(exchange(server.port, sent), 404, 400)
