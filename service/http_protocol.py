"""Reads HTTP as uvicorn does with httptools, but bounds what a client may make it hold: the parser itself does not."""

import asyncio
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST_HEAD = 64 * 1024
"""Bytes of request line and headers, as far as they come in more than one piece; and of what follows a body."""
LONGEST_WAIT = 30.0
"""Seconds from its first byte (or from the connection) within which a request has to be there."""
MOST_WAITING = 100
"""Requests that may wait on a connection for the answer to an earlier one."""


class TooManyWaiting(Exception):
    """Ends the parser's work."""


class BoundedProtocol(HttpToolsProtocol):
    """Refuses a longer head with 431, a slower request with 408, what is no HTTP with 400, and hangs up."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(*args, **options)
        self._open: int | None = None
        """Bytes read of a head, or of what follows a body, that is not complete; None outside of both."""
        self._begun = False
        """Whether a part of a request is there."""
        self._timer: asyncio.TimerHandle | None = None
        self._running: Any = None
        """The cycle whose answer is under way, or was last; uvicorn's own `cycle` is the one read last."""

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - uvicorn narrows what asyncio has
        """A client is there."""
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone: an answer under way ends, also if further requests wait behind it."""
        self._stop_waiting()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of one or more requests."""
        super().data_received(data)
        if self._open is not None and not self.transport.is_closing():
            self._open += len(data)
            if self._open > LONGEST_HEAD:
                text = f"the address and headers of a request may take {LONGEST_HEAD} bytes"
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)

    def on_message_begin(self) -> None:
        """The parser met a request."""
        self._open, self._begun = 0, True
        self._await_request()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The parser has read its head."""
        self._open = None
        super().on_headers_complete()
        if len(self.pipeline) > MOST_WAITING:
            raise TooManyWaiting

    def on_chunk_header(self) -> None:
        """The parser met a part of a body, or its end, which headers may follow."""
        self._open = 0

    def on_body(self, body: bytes) -> None:
        """Some of it."""
        self._open = None
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._open, self._begun = None, False
        self._stop_waiting()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:  # noqa: ANN401 - uvicorn's
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _unsupported_upgrade_warning(self) -> None:
        """Nobody is told to install anything: the request is answered as if it had not asked."""

    def _await_request(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(LONGEST_WAIT, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self._begun:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"a request has to be there within {LONGEST_WAIT:.0f} s")
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Say why and hang up; in the midst of an answer, hang up at once, whether its reader has taken it or not."""
        if self.transport.is_closing():
            return
        if self._running is not None and self._running.response_started and not self._running.response_complete:
            self.transport.abort()
        else:
            body = msgspec.json.encode({"error": "bad_request", "message": message, "allowed": []})
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()
