"""Bars of a range as the provider has them, whole or not at all: paging, and asking again what cannot be trusted."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import quote, unquote_plus

import httpx
import msgspec
import numpy as np

from service import __version__
from service.bars import MINUTE_MS, Bars, RejectedBar, to_ms
from service.errors import BadPayload, SettingsError
from service.provider import wire
from service.provider.ratelimit import SlidingWindow
from service.provider.transport import Retry, Tally, Transport
from service.provider.wire import Page
from service.timeframes import utc_now

log = logging.getLogger(__name__)

REPLAY_HEADER = "X-Candlewick-Replay"
PAGE_LIMIT = 50_000
"""Bars that the provider puts on one page at most."""
PAYLOAD_TRIES = 3
"""So often is a piece asked for whose body cannot be trusted."""
SIGHTINGS = 3
"""In so many tries must an impossible bar stand with the same content before it counts as the provider's last word."""
DOUBTFUL_TRIES = 6
"""So often is a piece asked for at most that keeps changing its impossible bars."""
IDLE_PAGES = 3
"""So many pages in a row without a new bar, each naming a next one, are a loop."""
_ONE_SERVICE = {"api.polygon.io": "api.massive.com"}
"""Two names of one service, either of which may stand in a next_url."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the provider has of one range: one whole, consistent try."""

    bars: Bars
    """The possible bars, ascending; those of minutes that were not over when the try began are left out."""
    rejected: tuple[RejectedBar, ...]
    """Bars that cannot have happened and that the provider repeated unchanged in three tries, ascending."""
    requests: int
    """HTTP requests that it took, repeated ones among them."""
    source: str
    """"polygon", or "replay:<name>" if the answer came from a replay server."""
    delayed: bool
    """Whether the plan's newest bars come late (status DELAYED)."""
    asked_at: datetime
    """When this try began, aware UTC: by our clock or the provider's, whichever is behind. A clock that runs ahead
    would take forming bars for ended ones, and what is still to come for empty."""


class ProviderClient:
    """One-minute bars over HTTP.

    limiter: of all calls made with this key. clock: aware UTC. sleep: waits between retries, seconds.
    Raises SettingsError where the key or the base URL (http or https, perhaps with a path) cannot be used.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        base_url: str,
        api_key: str,
        limiter: SlidingWindow,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
        retry: Retry | None = None,
    ) -> None:
        self._base = _base(base_url)
        self._clock = clock
        self.clock_ahead: timedelta | None = None
        """How far our clock is ahead of the provider's, to a second or so; None before the first answer."""
        self._transport = Transport(
            http, api_key=api_key, limiter=limiter, clock=clock, sleep=sleep, rng=rng, retry=retry
        )

    @property
    def calls(self) -> int:
        """HTTP requests made since this client was made, repeated ones among them."""
        return self._transport.calls

    async def fetch_bars(self, ticker: str, start: datetime, end: datetime) -> Answer:
        """The unadjusted one-minute bars of `[start, end)`, aware UTC on whole minutes, else ValueError.

        `ticker` is the provider's, case-sensitive. No bars is an answer; a failure is always raised: NotAuthorized,
        NotEntitled, BadRequest, Unavailable after all retries, or BadPayload where the body cannot be trusted
        (after three tries) or its impossible bars keep changing (after six).
        Source: GET /v2/aggs/ticker/{ticker}/range/1/minute/{from}/{to}, whose `to` is inclusive.
        """
        _check_range(start, end)
        tally = Tally()
        sightings: Counter[tuple[int, str]] = Counter()
        broken = doubtful = 0
        while True:
            try:
                page, source, asked_at = await self._fetch_piece(ticker, start, end, tally)
            except BadPayload as exc:
                broken += 1
                if broken == PAYLOAD_TRIES:
                    raise
                log.warning("the range is asked for again: %s", exc)
                continue
            doubtful += 1
            sightings.update((bar.ts, bar.raw) for bar in page.impossible)
            if all(sightings[bar.ts, bar.raw] >= SIGHTINGS for bar in page.impossible):
                return _answer(page, source, tally, asked_at)
            if doubtful == DOUBTFUL_TRIES:
                reason = f"{len(page.impossible)} impossible bars, not the same ones in {doubtful} tries; the first: "
                reason += f"{page.impossible[0].raw} ({page.impossible[0].reason})"
                raise self._bad(reason, self._first_url(ticker, start, end))

    async def _fetch_piece(
        self, ticker: str, start: datetime, end: datetime, tally: Tally
    ) -> tuple[Page, str, datetime]:
        """All pages of one try, joined, without the bars still open; their source; and when the try began."""
        began = self._clock()
        asked = [self._first_url(ticker, start, end)]
        most = (end - start) // timedelta(minutes=1000) + 10
        pages: list[Page] = []
        known: set[int] = set()
        sources: set[str] = set()
        idle = 0
        while True:
            response = await self._transport.get(asked[-1], tally)
            sources.add(_source(response))
            told = _date(response)
            if told is not None:
                self.clock_ahead = self._clock() - told
                began = min(began, told)
            try:
                page = wire.decode(response.content, ticker=ticker, start=start, end=end)
            except BadPayload as exc:
                raise self._bad(str(exc), asked[-1], exc.request_id) from None
            pages.append(wire.closed(page, began))
            if page.next_url is None:
                break
            before = len(known)
            known.update(page.bars.ts.tolist())
            idle = 0 if len(known) > before else idle + 1
            if idle == IDLE_PAGES or len(pages) == most:
                raise self._bad(f"the answer does not end: page {len(pages)}, {idle} without a new bar", asked[-1])
            asked.append(self._next_url(page.next_url, asked))
        if len(sources) > 1:
            raise self._bad(f"pages of different sources: {', '.join(sorted(sources))}", asked[0])
        try:
            return wire.join(pages), sources.pop(), began
        except BadPayload as exc:
            raise self._bad(str(exc), asked[0]) from None

    def _bad(self, reason: str, url: str, request_id: str | None = None) -> BadPayload:
        """The error that names the request; `reason` may quote the body, and so is searched for the key."""
        error = BadPayload(self._transport.scrub(reason), request=f"GET {url}")
        error.request_id = request_id and self._transport.scrub(request_id)
        return error

    def _first_url(self, ticker: str, start: datetime, end: datetime) -> str:
        span = f"{to_ms(start)}/{to_ms(end) - MINUTE_MS}"
        query = f"adjusted=false&sort=asc&limit={PAGE_LIMIT}"
        path = f"/v2/aggs/ticker/{quote(ticker, safe=':')}/range/1/minute/{span}?{query}"
        return f"{str(self._base).rstrip('/')}{path}"

    def _next_url(self, text: str, asked: Sequence[str]) -> str:
        """The next page's URL on the configured host and without a key; BadPayload if it is elsewhere or in `asked`."""
        try:
            target = self._base.join(text)
        except (httpx.InvalidURL, ValueError) as exc:
            raise self._bad(f"next_url is no URL: {exc}", asked[-1]) from None
        if _origin(target) != _origin(self._base):
            there, here = (f"{url.scheme}://{url.netloc.decode()}" for url in (target, self._base))
            raise self._bad(f"next_url leads to {there}, but the key is for {here} only", asked[-1])
        kept = [part for part in target.query.decode().split("&") if _name(part) != "apikey"]
        query = f"?{'&'.join(kept)}".encode() if any(kept) else b""
        url = str(self._base.copy_with(raw_path=target.raw_path.partition(b"?")[0] + query))
        if url in asked:
            raise self._bad("next_url leads back to a page that was asked for before", asked[-1])
        return url


@asynccontextmanager
async def open_client(
    base_url: str,
    api_key: str,
    *,
    limiter: SlidingWindow,
    clock: Callable[[], datetime] = utc_now,
    connect_timeout: float = 10.0,
    read_timeout: float = 60.0,
    retry: Retry | None = None,
) -> AsyncIterator[ProviderClient]:
    """A client with its own connections, closed at the end. Time-outs in seconds.

    HTTP/1.1; proxies as the environment says; redirects are not followed. Raises SettingsError as ProviderClient does.
    """
    async with httpx.AsyncClient(
        timeout=httpx.Timeout(read_timeout, connect=connect_timeout, pool=None),
        limits=httpx.Limits(max_connections=16, max_keepalive_connections=8),
        headers={"User-Agent": f"candlewick/{__version__}", "Accept": "application/json"},
    ) as http:
        yield ProviderClient(http, base_url=base_url, api_key=api_key, limiter=limiter, clock=clock, retry=retry)


def _answer(page: Page, source: str, tally: Tally, asked_at: datetime) -> Answer:
    rejected = np.array([bar.ts for bar in page.impossible], np.int64)
    return Answer(
        bars=page.bars.take(~np.isin(page.bars.ts, rejected)),
        rejected=page.impossible,
        requests=tally.requests,
        source=source,
        delayed=page.delayed,
        asked_at=asked_at,
    )


def _check_range(start: datetime, end: datetime) -> None:
    for at in (start, end):
        if at.utcoffset() != timedelta() or at.second or at.microsecond:
            raise ValueError(f"{at} is not a whole minute in UTC")
    if start >= end:
        raise ValueError(f"an empty range: [{start}, {end})")


def _source(response: httpx.Response) -> str:
    replay = response.headers.get(REPLAY_HEADER)
    return "polygon" if replay is None else f"replay:{replay}"


def _date(response: httpx.Response) -> datetime | None:
    """The provider's clock; None where it does not say."""
    try:
        at = parsedate_to_datetime(response.headers.get("Date", ""))
    except (ValueError, OverflowError):
        return None
    return at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC)


def _base(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as exc:
        raise SettingsError("POLYGON_BASE_URL", f"is no URL: {exc}") from exc
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query or url.fragment:
        raise SettingsError("POLYGON_BASE_URL", "must be like https://api.massive.com: no user, no query")
    return url


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, _ONE_SERVICE.get(url.host, url.host), url.port


def _name(parameter: str) -> str:
    return unquote_plus(parameter.partition("=")[0]).lower()
