"""What a single request does when the provider refuses, stumbles or hangs."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from service.errors import (
    BadPayload,
    BadRequest,
    NotAuthorized,
    NotEntitled,
    ProviderError,
    SettingsError,
    Unavailable,
)
from service.provider.ratelimit import SlidingWindow
from service.provider.transport import Retry, Tally, Transport

KEY = "k3y+s3cret/of=mine"
URL = "https://api.massive.com/v2/x"
NOW = datetime(2025, 2, 25, 12, 0, tzinfo=UTC)

Reply = httpx.Response | Exception | Callable[[], httpx.Response]


class Provider(httpx.AsyncBaseTransport):
    """Gives the replies of a list in turn, the last one for ever; keeps the requests and the waits between them."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply() if callable(reply) else reply

    async def sleep(self, seconds: float) -> None:
        """Note the wait, and do not wait."""
        self.waits.append(seconds)

    async def get(self, key: str = KEY, retry: Retry | None = None) -> httpx.Response:
        """One GET through a new transport."""
        self.tally = Tally()
        async with httpx.AsyncClient(transport=self, follow_redirects=True) as http:
            transport = Transport(
                http,
                api_key=key,
                limiter=SlidingWindow(None),
                clock=lambda: NOW,
                sleep=self.sleep,
                rng=random.Random(7),  # noqa: S311 - a test repeats itself
                retry=retry,
            )
            try:
                return await transport.get(URL, self.tally)
            finally:
                assert transport.calls == self.tally.requests == len(self.requests)

    async def fail(self) -> ProviderError:
        """One GET that must raise."""
        with pytest.raises(ProviderError) as caught:
            await self.get()
        return caught.value


def reply(status: int, text: str = "", **headers: str) -> Callable[[], httpx.Response]:
    """A maker of equal responses; `retry_after` names the header Retry-After."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: httpx.Response(status, text=text, headers=fields)


OK = reply(200, "fine")


async def test_key_travels_in_a_header_alone() -> None:
    """The key is sent as a bearer token, and stands in no URL."""
    provider = Provider(OK)
    assert (await provider.get()).text == "fine"
    assert provider.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    assert str(provider.requests[0].url) == URL


async def test_empty_key_is_not_sent() -> None:
    """Without a key no Authorization header is sent, so that a server that needs none can be asked."""
    provider = Provider(OK)
    await provider.get(key="")
    assert "Authorization" not in provider.requests[0].headers


@pytest.mark.parametrize("key", ["abc\n", "a b", "schlüssel"])
async def test_unusable_key_is_a_setting_to_mend(key: str) -> None:
    """A key that no header can carry is refused by the name of its variable, and not shown."""
    with pytest.raises(SettingsError) as caught:
        await Provider(OK).get(key=key)
    assert caught.value.variable == "POLYGON_API_KEY"
    assert key.strip() not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "text", "error", "words"),
    [
        (400, '{"error": "bad from", "request_id": "r"}', BadRequest, "HTTP 400: bad from"),
        (401, '{"error": "Unknown API Key"}', NotAuthorized, "(Unknown API Key): set POLYGON_API_KEY"),
        (403, '{"message": "not entitled"}', NotEntitled, "not entitled"),
        (404, "", BadRequest, "HTTP 404: Not Found"),
        (404, "<html><style>p{}</style><h1>No\n such page</h1></html>", BadRequest, "HTTP 404: No such page"),
        (400, '{"error": {"code": 7}}', BadRequest, '{"error": {"code": 7}}'),
        (400, '["odd"]', BadRequest, '["odd"]'),
        (499, "", BadRequest, "HTTP 499: an empty body"),
        (400, f'{{"error": "the key {KEY} is odd", "request_id": "of {KEY}"}}', BadRequest, "the key *** is odd"),
    ],
)
async def test_refusal_is_final(status: int, text: str, error: type[ProviderError], words: str) -> None:
    """A refusal that a repetition cannot mend is raised at once, with the provider's words and without the key."""
    provider = Provider(reply(status, text))
    caught = await provider.fail()
    assert type(caught) is error
    assert words in str(caught)
    assert KEY not in str(caught)
    assert caught.request == f"GET {URL}"
    assert (len(provider.requests), provider.waits) == (1, [])


async def test_long_page_is_quoted_in_part() -> None:
    """Of a long body the message holds an excerpt only."""
    assert len(str(await Provider(reply(400, "x" * 100_000)).fail())) < 500


async def test_redirect_is_not_followed() -> None:
    """The key never follows a redirect; the error says where it would have led."""
    provider = Provider(reply(302, location="https://elsewhere.org/?apiKey=1"))
    caught = await provider.fail()
    assert isinstance(caught, BadRequest)
    assert "'elsewhere.org': is POLYGON_BASE_URL right?" in str(caught)
    assert len(provider.requests) == 1


@pytest.mark.parametrize(
    "stumble",
    [
        reply(500, "<html>oops</html>"),
        reply(503),
        reply(429),
        httpx.ReadTimeout("slow"),
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("cut off"),
    ],
)
async def test_passing_trouble_is_waited_out(stumble: Reply) -> None:
    """Overload, server errors, time-outs and broken connections are tried again with growing, jittered waits."""
    provider = Provider(stumble, stumble, stumble, OK)
    assert (await provider.get()).text == "fine"
    assert len(provider.requests) == 4
    assert all(0 <= wait <= 2**n for n, wait in enumerate(provider.waits))
    assert len(set(provider.waits)) == 3


@pytest.mark.parametrize(
    ("stumble", "words"),
    [
        (reply(502, "<h1>Bad Gateway</h1>"), "5 attempts, the last: HTTP 502: Bad Gateway; try again later"),
        (reply(429, '{"error": "slow down"}'), "HTTP 429: slow down; is POLYGON_RATE_LIMIT"),
        (httpx.ConnectError(f"refused {KEY}"), "ConnectError refused ***"),
    ],
)
async def test_lasting_trouble_is_unavailable(stumble: Reply, words: str) -> None:
    """After five attempts the provider counts as unavailable; the message holds the last reason."""
    provider = Provider(stumble)
    caught = await provider.fail()
    assert isinstance(caught, Unavailable)
    assert words in str(caught)
    assert len(provider.requests) == 5


async def test_request_id_of_the_last_failure() -> None:
    """The provider's id of the last failed attempt is in the error."""
    assert (await Provider(reply(500, '{"request_id": "r9"}')).fail()).request_id == "r9"


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("2.5", 2.5, 2.5),
        (format_datetime(NOW + timedelta(seconds=42), usegmt=True), 42, 42),
        ((NOW + timedelta(seconds=42)).strftime("%d %b %Y %H:%M:%S -0000"), 42, 42),
        ("86400", 120, 120),
        ("0", 0, 1),
        (format_datetime(NOW - timedelta(seconds=9), usegmt=True), 0, 1),
        ("soon", 0, 1),
    ],
)
async def test_retry_after_is_honoured(header: str, low: float, high: float) -> None:
    """Retry-After counts in seconds or as a date, up to two minutes; one that says nothing leaves the back-off."""
    provider = Provider(reply(429, retry_after=header), OK)
    await provider.get()
    assert low <= provider.waits[0] <= high


@pytest.mark.parametrize(("header", "last"), [({}, 60.0), ({"retry_after": "3"}, 3.0)])
async def test_last_attempt_comes_after_the_plans_window(header: dict[str, str], last: float) -> None:
    """If 429 never says how long to wait, the last attempt comes a whole window later, when the plan allows it."""
    provider = Provider(reply(429, **header))
    await provider.fail()
    assert provider.waits[-1] == last


async def test_broken_compression_is_a_bad_payload() -> None:
    """A body that cannot be unpacked is no body to trust."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"no gzip"

    provider = Provider(lambda: httpx.Response(200, content=broken(), headers={"Content-Encoding": "gzip"}))
    assert isinstance(await provider.fail(), BadPayload)


async def test_trickle_of_bytes_is_cut_off() -> None:
    """An answer that never ends is given up at the deadline, although every read is in time."""

    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.001)

    provider = Provider(lambda: httpx.Response(200, content=trickle()), OK)
    assert (await provider.get(retry=Retry(deadline=0.05))).text == "fine"
    assert len(provider.requests) == 2
