import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from service.replay import ReplayConfig, Served
from service.replay.app import ReplayApp
from service.replay.market import market_of

_NOW = datetime(2024, 5, 15, tzinfo=UTC)
_AGGS = "/v2/aggs/ticker/{}/range/{}/{}/{}"
_DAY = _AGGS.format("C:EURUSD", "1/minute", "2024-05-14", "2024-05-14")
_KEY = {"Authorization": "Bearer key"}
_SHARED = Path(__file__).parents[3] / "shared" / "polygon"


def _app(**options: Any) -> ReplayApp:  # noqa: ANN401
    config = ReplayConfig(**{"now": _NOW, **options})
    return ReplayApp(config, market_of(config), clock=lambda: config.now or _NOW)


async def _get(app: ReplayApp, target: str, headers: Mapping[str, str] = _KEY, method: str = "GET") -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://replay.test") as client:
        return await client.request(method, target, headers=headers)


def _recorded(name: str) -> dict[str, Any]:
    file = _SHARED / "errors" / f"{name}.json"
    if not file.is_file():
        pytest.skip(f"recorded body absent: {file}")
    body: dict[str, Any] = json.loads(file.read_bytes())
    return body


@pytest.mark.parametrize(
    ("name", "options", "target", "headers"),
    [
        ("400_bad_from", {}, _AGGS.format("C:EURUSD", "1/minute", "yesterday", "2024-05-14"), _KEY),
        ("400_to_before_from", {}, _AGGS.format("C:EURUSD", "1/minute", "2024-05-14", "2024-05-13"), _KEY),
        ("401_no_key", {}, _DAY, {}),
        ("401_unknown_key", {"api_key": "right"}, _DAY, _KEY),
        ("403_not_entitled", {"denied": ("EURUSD",)}, _DAY, _KEY),
        ("403_timeframe", {"history_start": _NOW, "history_refused": True}, _DAY, _KEY),
        ("429_rate", {"faults": ("rate_limited:plain",)}, _DAY, _KEY),
    ],
)
async def test_error_bodies_are_the_provider_s(
    name: str, options: dict[str, Any], target: str, headers: dict[str, str]
) -> None:
    """Status and body equal the recorded ones, but for the request's own id."""
    answer = await _get(_app(**options), target, headers)
    body, recorded = answer.json(), _recorded(name)
    assert answer.status_code == int(name[:3])
    assert list(body) == list(recorded)
    assert {**body, "request_id": ""} == {**recorded, "request_id": ""}
    assert len(body["request_id"]) == 32
    assert answer.headers["content-type"] == "application/json"


async def test_an_empty_answer_is_the_recorded_one() -> None:
    """Nothing found looks like the provider's own empty answer, key for key."""
    file = _SHARED / "recorded" / "empty_gbpjpy_1minute.json"
    if not file.is_file():
        pytest.skip(f"recorded body absent: {file}")
    saturday = _AGGS.format("C:GBPJPY", "1/minute", "2024-05-11", "2024-05-11")
    body = (await _get(_app(), f"{saturday}?adjusted=false")).json()
    recorded = json.loads(file.read_bytes())
    assert list(body.items())[:-1] == list(recorded.items())[:-1]


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (_AGGS.format("C:EURUSD", "1/minute", "2024-05-14", "2024-02-30"), "'to'"),
        (_AGGS.format("C:EURUSD", "1/minute", "2024-05-14T00:00", "2024-05-14"), "'from'"),
        (_AGGS.format("C:EURUSD", "1/minute", 1715731200001, 1715731200000), "'to'"),
        (_AGGS.format("C:EURUSD", "1/second", "2024-05-14", "2024-05-14"), "one-minute"),
        (_AGGS.format("C:EURUSD", "1/fortnight", "2024-05-14", "2024-05-14"), "'timespan'"),
        (_AGGS.format("C:EURUSD", "0/minute", "2024-05-14", "2024-05-14"), "'multiplier'"),
        (_AGGS.format("C:EURUSD", "1.5/minute", "2024-05-14", "2024-05-14"), "'multiplier'"),
        (f"{_DAY}?limit=0", "'limit'"),
        (f"{_DAY}?limit=50001", "'limit'"),
        (f"{_DAY}?limit=many", "'limit'"),
        (f"{_DAY}?sort=up", "'sort'"),
        (f"{_DAY}?adjusted=perhaps", "'adjusted'"),
        (f"{_DAY}?cursor=%C3%A9", "'cursor'"),
        (f"{_DAY}?cursor=AAAA", "'cursor'"),
    ],
)
async def test_what_cannot_be_read_is_refused_by_name(target: str, names: str) -> None:
    """A bad parameter is a 400 in the provider's shape that names it."""
    answer = await _get(_app(), target)
    assert answer.status_code == 400
    assert list(answer.json()) == ["status", "request_id", "error"]
    assert names in answer.json()["error"]


@pytest.mark.parametrize(("method", "target"), [("GET", "/v3/nothing"), ("GET", "/"), ("POST", _DAY)])
async def test_other_routes_are_not_found(method: str, target: str) -> None:
    """Whatever this server does not know is a 404 in the provider's shape."""
    answer = await _get(_app(), target, method=method)
    assert (answer.status_code, answer.json()["status"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (_DAY, {"Authorization": "Bearer right"}, 200),
        (_DAY, {"Authorization": "bearer right"}, 200),
        (f"{_DAY}?apiKey=right", {}, 200),
        (f"{_DAY}?apiKey=wrong", {}, 401),
        (f"{_DAY}?apiKey=", {}, 401),
        (_DAY, {"Authorization": "Basic right"}, 401),
        (_DAY, {"Authorization": "Bearer "}, 401),
        ("/v1/marketstatus/now", {}, 401),
    ],
)
async def test_the_key_may_stand_in_the_header_or_in_the_url(target: str, headers: dict[str, str], status: int) -> None:
    """A configured key must be sent in one of the two places, exactly."""
    assert (await _get(_app(api_key="right"), target, headers)).status_code == status


async def test_any_key_will_do_where_none_is_configured() -> None:
    """Without a configured key any key that is not empty is accepted."""
    assert (await _get(_app(), f"{_DAY}?apiKey=whatever", {})).status_code == 200


async def test_every_answer_says_that_it_is_a_replay() -> None:
    """Errors too carry the header that tells a replay from the provider."""
    for target, headers in ((_DAY, _KEY), (_DAY, {}), ("/v3/nothing", _KEY), ("/v1/marketstatus/now", _KEY)):
        assert (await _get(_app(), target, headers)).headers["X-Candlewick-Replay"] == "synthetic"


async def test_encoded_tickers_are_the_same_tickers() -> None:
    """C%3AEURUSD is C:EURUSD, and its next page is spelled plainly."""
    answer = await _get(_app(), f"{_DAY.replace('C:', 'C%3A')}?limit=3")
    body = answer.json()
    assert (body["ticker"], body["count"]) == ("C:EURUSD", 3)
    assert "/ticker/C:EURUSD/" in body["next_url"]


async def test_next_url_stands_on_the_host_of_the_request() -> None:
    """A client that came by another name is sent on by that name."""
    answer = await _get(_app(), f"{_DAY}?limit=3", {**_KEY, "Host": "market.example:8123"})
    assert answer.json()["next_url"].startswith("http://market.example:8123/v2/aggs/")


@pytest.mark.parametrize(
    ("denied", "ticker", "status"),
    [
        ("I:", "I:SPX", 403),
        ("I:", "C:EURUSD", 200),
        ("X:B*", "X:BTCUSD", 403),
        ("X:B*", "X:ETHUSD", 200),
        ("X:BTCUSD", "X:BTCUSD", 403),
        ("A", "AAPL", 200),
    ],
)
async def test_denied_tickers_are_refused(denied: str, ticker: str, status: int) -> None:
    """An entry denies one ticker or, ending in a colon or a star, all that begin with it."""
    target = _AGGS.format(ticker, "1/hour", "2024-05-14", "2024-05-14")
    assert (await _get(_app(denied=(denied,)), target)).status_code == status


async def test_history_is_refused_only_before_its_start() -> None:
    """A plan that refuses old ranges answers those that begin within its history."""
    app = _app(history_start=datetime(2024, 5, 14, tzinfo=UTC), history_refused=True)
    assert (await _get(app, _DAY)).status_code == 200
    assert (await _get(app, _DAY.replace("14/", "13/"))).status_code == 403


async def test_the_running_day_is_refused_up_to_new_york_s_midnight() -> None:
    """A plan without the present answers what ends with the last day there, and that day too as soon as it is over."""
    noon = datetime(2024, 5, 14, 16, tzinfo=UTC)
    app = _app(now=noon, today_refused=True)
    begin, midnight = (int(at.timestamp() * 1000) for at in (noon - timedelta(days=1), noon - timedelta(hours=12)))
    for end, status in ((midnight - 60_000, 200), (midnight, 403), (midnight + 3_600_000, 403)):
        assert (await _get(app, _AGGS.format("X:BTCUSD", "1/minute", begin, end))).status_code == status
    later = _app(now=noon + timedelta(hours=12), today_refused=True)
    assert (await _get(later, _AGGS.format("X:BTCUSD", "1/minute", begin, midnight))).status_code == 200


async def test_the_rate_limit_counts_a_sliding_minute() -> None:
    """The call over the limit is refused and told how long to wait; refused calls are not counted."""
    uptime = [100.0]
    config = ReplayConfig(rate_limit=2, now=_NOW)
    app = ReplayApp(config, market_of(config), clock=lambda: _NOW, uptime=lambda: uptime[0])
    status = []
    for at in (100.0, 130.0, 131.5, 159.9, 160.0, 161.0, 190.0):
        uptime[0] = at
        answer = await _get(app, "/v1/marketstatus/now")
        status.append((answer.status_code, answer.headers.get("retry-after")))
    assert status == [(200, None), (200, None), (429, "29"), (429, "1"), (200, None), (429, "29"), (200, None)]


async def test_latency_delays_every_answer() -> None:
    """The configured milliseconds pass before an answer."""
    before = datetime.now(UTC)
    await _get(_app(latency=60), _DAY, {})
    assert datetime.now(UTC) - before >= timedelta(milliseconds=60)


async def test_market_status_is_served() -> None:
    """The status has the provider's fields, at the server's own time."""
    body = (await _get(_app(), "/v1/marketstatus/now")).json()
    assert set(body) == {
        "afterHours", "currencies", "earlyHours", "exchanges", "indicesGroups", "market", "serverTime",
    }  # fmt: skip
    assert body["serverTime"] == "2024-05-14T20:00:00-04:00"


async def test_requests_are_recorded_with_the_place_of_their_key() -> None:
    """A test can see what was asked, and that no key stood in a URL."""
    seen: list[Served] = []
    config = ReplayConfig(now=_NOW, faults=(None, "wrong_count"))
    app = ReplayApp(config, market_of(config), clock=lambda: _NOW, record=seen.append)
    await _get(app, f"{_DAY}?limit=3")
    await _get(app, f"{_DAY}?apiKey=k", {})
    await _get(app, "/nothing", {})
    assert [msgspec.structs.astuple(served) for served in seen] == [
        (_DAY, {"limit": "3"}, "header", None),
        (_DAY, {"apiKey": "k"}, "query", "wrong_count"),
        ("/nothing", {}, "none", None),
    ]
