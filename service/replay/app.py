"""The provider's protocol as one ASGI callable: small, so that faults can reach down to the connection."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Literal

import msgspec

from service.bars import to_ms
from service.provider_calls.markets import NEW_YORK
from service.provider_calls.refusals import (
    NO_KEY,
    NOT_ENTITLED,
    TIMEFRAME,
    TOO_MANY,
    UNKNOWN_KEY,
    Answer,
    Refusal,
    request_id,
)
from service.provider_calls.request import Request, Wanted, asks_for_bars, wanted
from service.replay.config import ReplayConfig, ticker_of
from service.replay.faults import CUT_SHORT, FaultPlan
from service.replay.market import Market, View
from service.replay.pages import Page, page_of
from service.replay.spoiling import Asked
from service.replay.status import market_status
from service.zones import local_date, midnight

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HANG_UP = "candlewick.hang_up"
"""Key of the ASGI scope under which the server leaves a callable that closes the connection."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A request that came in."""

    path: str
    """Percent-decoded."""
    query: Mapping[str, str]
    """As sent: a key in the URL shows up here."""
    key_in: Literal["header", "query", "none"]
    fault: str | None
    """The fault that it met, with its variant."""


class ReplayApp:
    """Answers requests for bars and for the market's status."""

    def __init__(
        self,
        config: ReplayConfig,
        market: Market,
        *,
        clock: Callable[[], datetime],
        record: Callable[[Served], None] = lambda _: None,
        uptime: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: the present, aware UTC; record: called with each request; uptime: seconds, for the rate limit."""
        self.market = market
        self.plan = FaultPlan(
            rate=config.fault_rate, seed=config.fault_seed, kinds=config.fault_kinds, script=config.faults
        )
        self._config = config
        self._clock = clock
        self._record = record
        self._uptime = uptime
        self._calls: deque[float] = deque()
        self._denied = tuple(ticker_of(entry) for entry in config.denied)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; bodies of requests are ignored."""
        request = Request.of(scope)
        fault = self.plan.next() if asks_for_bars(request.path) else None
        key_in: Literal["header", "query", "none"] = (
            "header" if request.bearer else "query" if request.query.get("apiKey") else "none"
        )
        self._record(Served(path=request.path, query=request.query, key_in=key_in, fault=fault))
        if self._config.latency:
            await asyncio.sleep(self._config.latency / 1000)
        answer = (self.plan.refusal(fault) if fault else None) or self.answer(request, fault)
        if fault in CUT_SHORT:
            await self._hang_up(answer, scope, receive, send, wait=fault == "timeout")
        else:
            await self._send(answer, answer.body, send)

    def view(self) -> View:
        """What can be seen of the market now."""
        return self.market.view(self._clock())

    def answer(self, request: Request, fault: str | None = None) -> Answer:
        """The answer to a request, with the fault in its body where it is of that kind."""
        try:
            self._admit(request)
            if (request.method, request.path) == ("GET", "/v1/marketstatus/now"):
                return Answer(status=200, body=msgspec.json.encode(market_status(self._clock())))
            asked = wanted(request)
            self._entitle(asked)
            page = page_of(self.market, asked, self.view())
        except Refusal as refusal:
            return refusal.answer()
        answer = Answer(status=200, body=self._body(page, asked, request.base))
        if fault is None or fault in CUT_SHORT:
            return answer
        known = Asked(url=request.url, start=asked.start, end=asked.end, ascending=asked.sort == "asc")
        return self.plan.spoiled(answer, fault, known)

    def _admit(self, request: Request) -> None:
        """Check the key, then the calls of the last 60 s; a refused call is not counted."""
        if not request.key:
            raise Refusal(401, NO_KEY)
        if self._config.api_key is not None and request.key != self._config.api_key:
            raise Refusal(401, UNKNOWN_KEY)
        if self._config.rate_limit is None:
            return
        now = self._uptime()
        while self._calls and self._calls[0] <= now - 60:
            self._calls.popleft()
        if len(self._calls) >= self._config.rate_limit:
            wait = math.ceil(self._calls[0] + 60 - now) if self._calls else 60
            raise Refusal(429, TOO_MANY, headers={b"retry-after": str(wait).encode()})
        self._calls.append(now)

    def _entitle(self, asked: Wanted) -> None:
        for entry in self._denied:
            prefix = entry.removesuffix("*")
            if asked.ticker == entry or (entry.endswith((":", "*")) and asked.ticker.startswith(prefix)):
                raise Refusal(403, NOT_ENTITLED)
        history = self._config.history_start
        if self._config.history_refused and history is not None and asked.start < history.timestamp() * 1000:
            raise Refusal(403, TIMEFRAME)
        if self._config.today_refused:
            today = local_date(NEW_YORK, to_ms(self._clock()))
            if asked.end > midnight(NEW_YORK, today):
                raise Refusal(403, TIMEFRAME)

    def _body(self, page: Page, asked: Wanted, base: str) -> bytes:
        """The keys in the provider's order; `results`, `count` and `next_url` only where there is something in them."""
        head = (
            f'{{"ticker":{_text(asked.ticker)},"queryCount":{page.base},"resultsCount":{page.count},'
            f'"adjusted":{"true" if asked.adjusted else "false"},'
        )
        status = "DELAYED" if self._config.delay or self._config.end_of_day else "OK"
        tail = f'"status":"{status}","request_id":"{request_id()}"'
        if page.count:
            tail += f',"count":{page.count}'
        if page.follow is not None:
            tail += f',"next_url":{_text(asked.next_url(base, page.follow))}'
        if not page.count:
            return f"{head}{tail}}}".encode()
        *texts, last = (text for text in page.texts if text)
        return b"".join([head.encode(), b'"results":[', *texts, last[:-1], b"],", tail.encode(), b"}"])

    async def _send(self, answer: Answer, body: bytes, send: Send, *, more: bool = False) -> None:
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", str(len(answer.body)).encode()),
            (b"x-candlewick-replay", self.market.source.name.encode()),
            (b"date", format_datetime(self._clock().astimezone(UTC), usegmt=True).encode()),
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})

    async def _hang_up(self, answer: Answer, scope: Scope, receive: Receive, send: Send, *, wait: bool) -> None:
        """Close the connection: after a silence, or after half of the answer."""
        if wait:
            with suppress(TimeoutError):
                await asyncio.wait_for(_gone(receive), self._config.fault_delay)
        else:
            await self._send(answer, answer.body[: len(answer.body) // 2], send, more=True)
        scope[HANG_UP]()
        await _gone(receive)


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _text(value: str) -> str:
    return msgspec.json.encode(value).decode()
