"""One HTTP request to the provider ends in a body or in one of our errors; the key is seen by no one else."""

import asyncio
import json
import logging
import random
import re
from collections.abc import Awaitable, Callable, Generator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NoReturn
from urllib.parse import quote

import httpx
import msgspec

from service.errors import BadPayload, BadRequest, NotAuthorized, NotEntitled, SettingsError, Unavailable
from service.provider.ratelimit import SlidingWindow
from service.timeframes import utc_now

log = logging.getLogger(__name__)

EXCERPT = 300
"""Characters of a body that an error message quotes at most."""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how late a request is repeated that met 429, 5xx, a time-out or a broken connection. Seconds."""

    attempts: int = 5
    """All attempts, the first among them."""
    base: float = 1.0
    """The n-th wait is drawn evenly from 0 to base * 2**(n - 1), at most `longest`."""
    longest: float = 30.0
    longest_asked: float = 120.0
    """Longest wait that a Retry-After is granted."""
    window: float = 60.0
    """Wait before the last attempt after a 429 without Retry-After: by then the plan's window has passed."""
    deadline: float = 300.0
    """For one attempt from its sending to the last byte, so that no trickle of bytes holds it for ever."""


class Tally:
    """Counts the HTTP requests of one call."""

    def __init__(self) -> None:
        self.requests = 0


class Transport:
    """GET with the key in a header, a place in the limiter for every attempt, and bounded retries.

    Raises SettingsError for a key that no header can carry. An empty key is not sent.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        api_key: str,
        limiter: SlidingWindow,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
        retry: Retry | None = None,
    ) -> None:
        if not re.fullmatch(r"[!-~]*", api_key):
            raise SettingsError("POLYGON_API_KEY", "holds blanks, line breaks or letters outside ASCII: copy it again")
        self._http = http
        self._auth = _Bearer(api_key) if api_key else httpx.Auth()
        self._key = re.compile("|".join(re.escape(form) for form in {api_key, quote(api_key, safe="")}) or "(?!)")
        self._limiter = limiter
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries, guards nothing
        self._retry = retry or Retry()
        self.calls = 0
        """HTTP requests made so far, repeated ones among them."""

    async def get(self, url: str, tally: Tally) -> httpx.Response:
        """The answer (2xx) to a GET of this URL, which holds no key.

        Raises NotAuthorized (401), NotEntitled (403) or BadRequest (redirects and the rest of 4xx) at once, and
        Unavailable once the retries of 429, 5xx, time-outs and broken connections are spent.
        """
        request = f"GET {url}"
        for attempt in range(1, self._retry.attempts + 1):
            outcome = await self._attempt(url, tally)
            response = outcome if isinstance(outcome, httpx.Response) else None
            if response is not None and response.is_success:
                return response
            if response is not None and not _passing(response):
                self._refuse(response, request)
            why, request_id = self._why(outcome)
            if attempt < self._retry.attempts:
                wait = self._wait(attempt, response)
                log.warning("the provider is asked again in %.1f s after %s [%s]", wait, why, request)
                await self._sleep(wait)
        hint = "; is POLYGON_RATE_LIMIT above the plan's limit?" if why.startswith("HTTP 429") else "; try again later"
        cause = outcome if isinstance(outcome, Exception) else None
        message = f"the provider gave no answer in {self._retry.attempts} attempts, the last: {why}{hint}"
        raise Unavailable(message, request=request, request_id=request_id) from cause

    async def _attempt(self, url: str, tally: Tally) -> httpx.Response | Exception:
        """One response of any status, or what broke the connection."""
        async with self._limiter.slot():
            self.calls += 1
            tally.requests += 1
            try:
                async with asyncio.timeout(self._retry.deadline):
                    return await self._http.get(url, auth=self._auth, follow_redirects=False)
            except (httpx.TransportError, TimeoutError) as exc:
                return exc
            except httpx.DecodingError as exc:
                raise BadPayload(self.scrub(f"the compressed body is broken: {exc}"), request=f"GET {url}") from exc

    def scrub(self, text: str) -> str:
        """The text without the key, should it stand there."""
        return self._key.sub("***", text)

    def _wait(self, attempt: int, response: httpx.Response | None) -> float:
        """Seconds before the next attempt: what the provider asks for, else exponential back-off with full jitter."""
        retry = self._retry
        backoff = self._rng.uniform(0.0, min(retry.longest, retry.base * 2 ** (attempt - 1)))
        if response is None:
            return backoff
        asked = _retry_after(response, self._clock())
        if asked is not None and asked > 0:
            return min(asked, retry.longest_asked)
        if asked is None and response.status_code == httpx.codes.TOO_MANY_REQUESTS and attempt == retry.attempts - 1:
            return max(backoff, retry.window)
        return backoff

    def _why(self, outcome: httpx.Response | Exception) -> tuple[str, str | None]:
        """What came instead of an answer, in words, and the provider's id of the request."""
        if isinstance(outcome, Exception):
            return self.scrub(f"{type(outcome).__name__} {outcome}".strip()), None
        words, request_id = self._words(outcome)
        return f"HTTP {outcome.status_code}: {words}", request_id

    def _refuse(self, response: httpx.Response, request: str) -> NoReturn:
        words, request_id = self._words(response)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            message = f"the provider does not accept the key ({words}): set POLYGON_API_KEY to a valid one"
            raise NotAuthorized(message, request=request, request_id=request_id)
        if response.status_code == httpx.codes.FORBIDDEN:
            raise NotEntitled(words, request=request, request_id=request_id)
        if response.next_request is not None:
            message = f"HTTP {response.status_code}: redirects are not followed, for the key would go along; "
            message += f"this one leads to {response.next_request.url.host!r}: is POLYGON_BASE_URL right?"
            raise BadRequest(self.scrub(message), request=request, request_id=request_id)
        raise BadRequest(f"HTTP {response.status_code}: {words}", request=request, request_id=request_id)

    def _words(self, response: httpx.Response) -> tuple[str, str | None]:
        """The provider's own words, or an excerpt of the body, or the status in words; and the request_id."""
        try:
            body = json.loads(response.content)
        except (ValueError, RecursionError):
            body = None
        told = body if isinstance(body, dict) else {}
        text = next((told[key] for key in ("error", "message") if isinstance(told.get(key), str) and told[key]), "")
        text = text or re.sub(
            r"(?s)<(style|script)\b.*?</\1>|<[^>]*>", " ", response.content.decode("utf-8", "replace")
        )
        text = _printable(self.scrub(text)) or response.reason_phrase or "an empty body"
        request_id = told.get("request_id")
        return text[:EXCERPT], _printable(self.scrub(request_id))[:EXCERPT] if isinstance(request_id, str) else None


def _printable(text: str) -> str:
    """The text in one line, without what a terminal or a database would stumble over."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


class _Bearer(httpx.Auth):
    """The key as a header of the request itself, so that it stands in no URL."""

    def __init__(self, key: str) -> None:
        self._header = f"Bearer {key}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = self._header
        yield request


def _passing(response: httpx.Response) -> bool:
    """Whether a repetition may mend it."""
    return response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error


def _retry_after(response: httpx.Response, now: datetime) -> float | None:
    """Seconds that the provider asks to wait, negative if that time is over; None if it does not say."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text):
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds()
