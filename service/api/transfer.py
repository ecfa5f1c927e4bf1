"""Answers that are sent piece by piece, and what becomes of one that cannot be sent to its end."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import psycopg
from litestar.response import Stream
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Send

from service.errors import CandlewickError

SLICE = 128 * 1024
"""Bytes that are given to the server at once: it copies them, and holds the copy until a slow client has taken it."""
log = logging.getLogger(__name__)


class Streamed(Stream):
    """An answer that is sent piece by piece. named: what it is, as the log says."""

    def __init__(self, parts: AsyncGenerator[bytes, None], named: str, **options: Any) -> None:  # noqa: ANN401
        super().__init__(_sliced(parts), **options)
        self._named = named

    def to_asgi_response(self, *_: Any, **given: Any) -> "Transfer":  # noqa: ANN401 - the framework's own
        """The part of it that sends."""
        return Transfer(
            self._named,
            iterator=self.iterator,
            headers=(given.get("headers") or {}) | self.headers,
            media_type=self.media_type,
            status_code=self.status_code or given.get("status_code"),
        )


class Transfer(ASGIStreamingResponse):
    """Leaves the transfer without its end where it cannot go on, so that its reader sees it, and says why in a line."""

    __slots__ = ("_named",)

    def __init__(self, named: str, **options: Any) -> None:  # noqa: ANN401 - the framework's own
        super().__init__(**options)
        self._named = named

    async def send_body(self, send: Send, receive: Receive) -> None:
        """All pieces, or some: then the server hangs up."""
        try:
            await super().send_body(send, receive)
        except* (psycopg.Error, CandlewickError) as outage:
            why = " ".join(str(outage.exceptions[0]).split())
            log.error("%s were broken off: %s", self._named, why)  # noqa: TRY400 - nothing of it is ours
        except* Exception:
            log.exception("%s were broken off by a fault of ours", self._named)


async def _sliced(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        async for part in parts:
            if len(part) <= SLICE:
                yield part
                continue
            for place in range(0, len(part), SLICE):
                yield part[place : place + SLICE]
