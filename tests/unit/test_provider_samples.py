"""Every body in ../shared/polygon, recorded or from the provider's specification, is read as what it says."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from service.bars import from_ms
from service.errors import BadRequest, NotAuthorized, NotEntitled, ProviderError, Unavailable
from service.provider.client import ProviderClient
from service.provider.ratelimit import SlidingWindow
from service.provider.wire import decode

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "polygon"
ERRORS: dict[str, type[ProviderError]] = {
    "400": BadRequest,
    "401": NotAuthorized,
    "403": NotEntitled,
    "429": Unavailable,
}


def files(*folders: str) -> Sequence[Path | None]:
    """The samples of these folders; [None] where the folder is absent, so that a skipped test tells of it."""
    return sorted(path for folder in folders for path in (SAMPLES / folder).glob("*.json")) or [None]


def present(sample: Path | None) -> Path:
    """Skip aloud where there is no sample."""
    if sample is None:
        pytest.skip(f"{SAMPLES} is absent")
    return sample


def name(sample: Path | None) -> str:
    """Name the test after the sample."""
    return sample.stem if sample else "absent"


@pytest.mark.parametrize("sample", files("recorded", "spec-examples"), ids=name)
def test_sample_is_read_as_it_says(sample: Path | None) -> None:
    """A recorded or specified reply decodes to exactly the bars in it."""
    text = present(sample).read_bytes()
    reply = json.loads(text)
    results = sorted(reply.get("results", []), key=lambda bar: int(bar["t"]))
    start = from_ms(results[0]["t"]) if results else datetime(2025, 1, 1, tzinfo=UTC)
    end = (from_ms(results[-1]["t"]) if results else start) + timedelta(minutes=1)
    page = decode(text, ticker=reply["ticker"], start=start, end=end)
    assert page.bars.ts.tolist() == [bar["t"] for bar in results]
    for column, field in (("open", "o"), ("high", "h"), ("low", "l"), ("close", "c")):
        assert getattr(page.bars, column).tolist() == [bar[field] for bar in results]
    for column, field in (("volume", "v"), ("vwap", "vw"), ("trades", "n")):
        absent = -1 if field == "n" else "nan"
        values = [absent if value != value else value for value in getattr(page.bars, column).tolist()]  # noqa: PLR0124
        assert values == [bar.get(field, absent) for bar in results]
    assert page.impossible == ()
    assert page.next_url == reply.get("next_url")
    assert page.delayed == (reply["status"] == "DELAYED")


@pytest.mark.parametrize("sample", files("errors"), ids=name)
async def test_error_sample_becomes_our_error(sample: Path | None) -> None:
    """An error body of the provider becomes the error of its status, with the provider's own words."""
    path = present(sample)
    body = json.loads(path.read_bytes())

    def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(int(path.name[:3]), content=path.read_bytes(), request=request)

    async def sleep(seconds: float) -> None:
        assert seconds >= 0

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as http:
        client = ProviderClient(
            http,
            base_url="https://api.massive.com",
            api_key="k-secret",
            limiter=SlidingWindow(None),
            sleep=sleep,
        )
        start = datetime(2025, 2, 25, tzinfo=UTC)
        with pytest.raises(ProviderError) as caught:
            await client.fetch_bars("AAPL", start, start + timedelta(hours=1))
    assert type(caught.value) is ERRORS[path.name[:3]]
    assert (body.get("error") or body.get("message")) in str(caught.value)
    assert caught.value.request_id == body["request_id"]
