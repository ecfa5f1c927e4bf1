"""The key is seen by the provider alone: over a real connection, with every logger at its most talkative."""

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from service import __version__
from service.errors import CandlewickError
from service.provider.client import open_client
from service.provider.ratelimit import SlidingWindow
from service.provider.transport import Retry

KEY = "k3y-of-great-s3crecy"
START = datetime(2025, 2, 25, 9, 0, tzinfo=UTC)
FAST = Retry(attempts=2, base=0.0, window=0.0)


class Server:
    """A server that answers every request with one status and body, and keeps the heads of the requests."""

    def __init__(self, status: int, body: str) -> None:
        self.status = status
        self.body = body
        self.heads: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        body = self.body.encode()
        writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode())
        writer.write(body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Listen on a free port; gives the base URL."""
        server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


ECHO = json.dumps({"status": "ERROR", "error": f"what is {KEY}?", "request_id": KEY})
FOREIGN = json.dumps({"status": "OK", "next_url": f"http://elsewhere.org/?apiKey={KEY}"})


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, "{}"), (200, ECHO), (200, FOREIGN), (400, ECHO), (401, ECHO), (403, ECHO), (429, ECHO), (500, ECHO)],
)
async def test_key_stands_nowhere_but_in_the_header(status: int, body: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither an error, nor its traceback, nor a log record, nor a URL, nor a repr holds the key."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "service"):
        caplog.set_level(logging.DEBUG, logger=name)
    server = Server(status, body)
    async with (
        server.running() as url,
        open_client(url, KEY, limiter=SlidingWindow(None), retry=FAST) as client,
    ):
        with pytest.raises(CandlewickError) as caught:
            await client.fetch_bars("AAPL", START, START + timedelta(hours=1))
        shown = [*traceback.format_exception(caught.value), repr(caught.value), repr(vars(caught.value)), repr(client)]
    shown += [record.getMessage() + repr(vars(record)) for record in caplog.records]
    assert any("httpcore" in record.name for record in caplog.records)
    assert KEY not in "".join(shown)
    assert f"authorization: bearer {KEY}" in server.heads[0].lower()
    assert KEY not in server.heads[0].partition("\r\n")[0]


async def test_client_introduces_itself() -> None:
    """The opened client says who it is, and what it asks for."""
    server = Server(200, json.dumps({"status": "OK", "resultsCount": 0}))
    async with server.running() as url, open_client(url, KEY, limiter=SlidingWindow(None)) as client:
        answer = await client.fetch_bars("AAPL", START, START + timedelta(hours=1))
    assert (len(answer.bars), answer.requests) == (0, 1)
    assert f"User-Agent: candlewick/{__version__}" in server.heads[0]
