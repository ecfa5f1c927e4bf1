"""A range is answered whole, consistent and possible, or not at all."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import httpx
import pytest

from service.bars import MINUTE_MS, to_ms
from service.errors import BadPayload, BadRequest, SettingsError
from service.provider.client import Answer, ProviderClient
from service.provider.ratelimit import SlidingWindow

KEY = "k3y-s3cret"
BASE = "https://api.massive.com"
START = datetime(2025, 2, 25, 9, 0, tzinfo=UTC)
END = START + timedelta(hours=1)
T0 = to_ms(START)

Reply = httpx.Response | dict[str, Any]


def bar(minute: int = 0, **changes: object) -> dict[str, Any]:
    """A possible bar of the provider, with changes."""
    return {"v": 10, "vw": 1.2, "o": 1.1, "c": 1.3, "h": 1.4, "l": 1.0, "t": T0 + minute * MINUTE_MS, "n": 3} | changes


def page(*bars: dict[str, Any], **fields: object) -> dict[str, Any]:
    """A successful reply."""
    return {"ticker": "X:BTCUSD", "status": "OK", "results": list(bars)} | fields


class Provider:
    """Gives the replies of a list in turn, the last one for ever; keeps the URLs that were asked."""

    def __init__(self, *replies: Reply | Callable[[int], Reply], now: datetime = END, base: str = BASE) -> None:
        self.replies = list(replies)
        self.asked: list[str] = []
        self.now = now
        self.base = base

    def reply(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        self.asked.append(str(request.url))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if callable(reply):
            reply = reply(len(self.asked))
        return reply if isinstance(reply, httpx.Response) else httpx.Response(200, content=json.dumps(reply))

    async def fetch(self, start: datetime = START, end: datetime = END) -> Answer:
        """Fetch through a new client."""
        async with httpx.AsyncClient(transport=httpx.MockTransport(self.reply)) as http:
            client = ProviderClient(
                http,
                base_url=self.base,
                api_key=KEY,
                limiter=SlidingWindow(None),
                clock=lambda: self.now,
            )
            answer = await client.fetch_bars("X:BTCUSD", start, end)
            assert client.calls == answer.requests == len(self.asked)
            return answer

    async def minutes(self) -> list[int]:
        """Fetch, and return the minutes of the bars."""
        return [(ts - T0) // MINUTE_MS for ts in (await self.fetch()).bars.ts.tolist()]

    async def refuse(self) -> str:
        """Fetch, expect a BadPayload, and return its message."""
        with pytest.raises(BadPayload) as caught:
            await self.fetch()
        assert caught.value.request.startswith("GET https://")
        assert KEY not in str(caught.value)
        return str(caught.value)


async def test_range_is_asked_with_inclusive_end() -> None:
    """The half-open range becomes the provider's inclusive one, unadjusted, in Unix ms."""
    provider = Provider(page(bar()))
    answer = await provider.fetch()
    span = f"{T0}/{T0 + 59 * MINUTE_MS}"
    query = "adjusted=false&sort=asc&limit=50000"
    assert provider.asked == [f"{BASE}/v2/aggs/ticker/X:BTCUSD/range/1/minute/{span}?{query}"]
    assert (len(answer.bars), answer.rejected, answer.source, answer.delayed) == (1, (), "polygon", False)


async def test_base_url_may_have_a_path() -> None:
    """A provider behind a path prefix is asked there."""
    provider = Provider(page(), base="https://localhost:8443/replay/")
    await provider.fetch()
    assert provider.asked[0].startswith("https://localhost:8443/replay/v2/aggs/ticker/")


@pytest.mark.parametrize("base", ["", "api.massive.com", "ftp://x", "https://u:p@x", "https://x/?a=1", "http://x:y"])
async def test_unusable_base_url_is_a_setting_to_mend(base: str) -> None:
    """A base URL that cannot be used is refused by the name of its variable."""
    with pytest.raises(SettingsError, match="POLYGON_BASE_URL"):
        await Provider(page(), base=base).fetch()


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (START, START),
        (END, START),
        (START.replace(tzinfo=None), END),
        (START, END.replace(tzinfo=timezone(timedelta(hours=1)))),
        (START.replace(second=1), END),
        (START, END.replace(microsecond=1)),
    ],
)
async def test_odd_range_is_refused(start: datetime, end: datetime) -> None:
    """A range must be aware, UTC, on whole minutes and not empty."""
    provider = Provider(page())
    with pytest.raises(ValueError, match=r"whole minute|empty range"):
        await provider.fetch(start, end)
    assert provider.asked == []


async def test_replay_is_named_as_source() -> None:
    """Bars of a replay server never pass for the provider's."""
    headers = {"X-Candlewick-Replay": "synthetic"}
    answer = await Provider(httpx.Response(200, json=page(bar()), headers=headers)).fetch()
    assert answer.source == "replay:synthetic"


async def test_sources_are_not_mixed() -> None:
    """Pages of different sources are not joined."""
    second = httpx.Response(200, json=page(), headers={"X-Candlewick-Replay": "synthetic"})
    first = page(bar(), next_url=f"{BASE}/v2/next")
    assert (
        "pages of different sources: polygon, replay:synthetic"
        in await Provider(first, second, first, second, first, second).refuse()
    )


async def test_open_bars_are_left_out() -> None:
    """Bars whose minute was not over when the question was asked are not returned, possible or not."""
    assert await Provider(page(bar(0), bar(1), bar(2, v=-1)), now=START + timedelta(seconds=119)).minutes() == [0]


async def test_pages_are_followed() -> None:
    """All pages are asked for, each with the key in the header; one DELAYED page makes the answer delayed."""
    provider = Provider(
        page(bar(0), bar(1), next_url=f"{BASE}/v2/next?cursor=a%3D%3D&apiKey={KEY}&x=1"),
        page(bar(1), bar(2), next_url=f"{BASE}/v2/next?APIKEY={KEY}"),
        page(bar(3), status="DELAYED"),
    )
    answer = await provider.fetch()
    assert len(answer.bars) == 4
    assert answer.delayed
    assert provider.asked[1:] == [f"{BASE}/v2/next?cursor=a%3D%3D&x=1", f"{BASE}/v2/next"]


@pytest.mark.parametrize(
    ("base", "named"),
    [(BASE, "https://api.polygon.io"), ("https://api.polygon.io", BASE), (BASE, f"{BASE}:443"), (BASE, "")],
)
async def test_next_page_under_the_services_other_name(base: str, named: str) -> None:
    """The service has two names: a next_url under the other one is asked under the configured one."""
    provider = Provider(page(bar(0), next_url=f"{named}/v2/next?cursor=a"), page(bar(1)), base=base)
    assert await provider.minutes() == [0, 1]
    assert provider.asked[1] == f"{base}/v2/next?cursor=a"


@pytest.mark.parametrize(
    "foreign",
    ["https://evil.org", "http://api.massive.com", "https://api.massive.com:444", "https://api.massive.com@evil.org"],
)
async def test_key_does_not_leave_the_host(foreign: str) -> None:
    """A next_url on another host, port or scheme is not followed; the error names both places."""
    provider = Provider(page(bar(), next_url=f"{foreign}/v2/next?apiKey={KEY}"))
    message = await provider.refuse()
    assert foreign.replace("api.massive.com@", "") in message
    assert f"the key is for {BASE} only" in message
    assert all(url.startswith(f"{BASE}/") for url in provider.asked)


async def test_next_url_that_is_none() -> None:
    """A next_url that is no URL makes the answer untrustworthy."""
    assert "next_url is no URL" in await Provider(page(bar(), next_url="https://x:y")).refuse()


async def test_cycle_of_pages_is_refused() -> None:
    """A next_url that leads back to an earlier page is an error, not an end."""
    there, back = (page(bar(minute), next_url=f"{BASE}/v2/{name}") for minute, name in ((0, "a"), (1, "b")))
    assert "was asked for before" in await Provider(there, back, there, there, back, there, there, back, there).refuse()


async def test_pages_without_progress_are_refused() -> None:
    """Three pages in a row without a new bar, each naming a next one, are a loop; two are not."""
    provider = Provider(lambda n: page(next_url=f"{BASE}/v2/{n}"))
    assert "does not end: page 3, 3 without a new bar" in await provider.refuse()
    patient = Provider(page(next_url=f"{BASE}/v2/1"), page(next_url=f"{BASE}/v2/2"), page(bar()))
    assert await patient.minutes() == [0]


async def test_pages_are_bounded() -> None:
    """However little each page brings, an answer has no more pages than its range can need."""
    provider = Provider(lambda n: page(bar(n % 60), next_url=f"{BASE}/v2/{n}"))
    assert "does not end: page 10, 0 without a new bar" in await provider.refuse()


async def test_bad_payload_is_asked_again_from_the_first_page() -> None:
    """A body that cannot be trusted discards its whole try; the next try starts at page one."""
    first = page(bar(0), next_url=f"{BASE}/v2/next")
    provider = Provider(first, page(bar(0, o=1.2)), httpx.Response(200, text="{"), first, page(bar(1)))
    assert await provider.minutes() == [0, 1]
    assert [url.endswith("/next") for url in provider.asked] == [False, True, False, False, True]


async def test_lasting_bad_payload_is_raised() -> None:
    """After three tries the error is raised; it names the request, what was wrong and the provider's id."""
    provider = Provider(page(bar(60), request_id="r1"))
    with pytest.raises(BadPayload) as caught:
        await provider.fetch()
    assert len(provider.asked) == 3
    assert f"[GET {provider.asked[0]}]" in str(caught.value)
    assert "outside the range" in str(caught.value)
    assert caught.value.request_id == "r1"


async def test_refusal_of_a_later_page_is_raised_at_once() -> None:
    """A refused page is no reason to ask for the others again."""
    provider = Provider(page(bar(), next_url=f"{BASE}/v2/next"), httpx.Response(400, json={"error": "cursor"}))
    with pytest.raises(BadRequest, match="cursor"):
        await provider.fetch()
    assert len(provider.asked) == 2


async def test_impossible_bar_that_is_mended_is_good() -> None:
    """A minute that is impossible in one try and possible in the next is returned as the next try has it."""
    provider = Provider(page(bar(0), bar(1, v=-1)), page(bar(0, o=1.2), bar(1)))
    answer = await provider.fetch()
    assert (answer.bars.open.tolist(), answer.rejected, answer.requests) == ([1.2, 1.1], (), 2)


async def test_lasting_impossible_bar_is_rejected() -> None:
    """A bar that stays impossible and unchanged in three tries is rejected; all others are returned."""
    answer = await Provider(page(bar(0), bar(1, v=-1), bar(2))).fetch()
    assert ((answer.bars.ts - T0) // MINUTE_MS).tolist() == [0, 2]
    assert [json.loads(found.raw) for found in answer.rejected] == [bar(1, v=-1)]
    assert answer.requests == 3


async def test_changing_impossible_bar_needs_three_equal_sightings() -> None:
    """An impossible bar that changes is asked for until one form of it has been seen three times."""
    replies = [page(bar(v=volume)) for volume in (-1, -2, -1, -2, -1)]
    answer = await Provider(*replies).fetch()
    assert answer.requests == 5
    assert json.loads(answer.rejected[0].raw)["v"] == -1


async def test_impossible_bars_that_never_settle_are_refused() -> None:
    """Six tries that never settle are a bad payload."""
    provider = Provider(lambda n: page(bar(v=-n)))
    assert "1 impossible bars, not the same ones in 6 tries" in await provider.refuse()
    assert len(provider.asked) == 6


async def test_kinds_of_doubt_are_counted_apart() -> None:
    """Bad payloads between impossible bars do not use up their tries, nor the other way round."""
    odd, broken = page(bar(v=-1)), httpx.Response(200, text="")
    answer = await Provider(odd, broken, odd, broken, odd).fetch()
    assert (len(answer.rejected), answer.requests) == (1, 5)
