import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from service.replay import FAULT_KINDS, HARMLESS, RANDOM_KINDS, ReplayConfig, ReplayServer, running
from service.replay.faults import CUT_SHORT, FaultPlan, check
from service.replay.spoiling import SPOILERS, Asked, spoil

_DAY = "/v2/aggs/ticker/{}/range/1/minute/2024-05-14/2024-05-14"
_MINUTES = range(1715644800000, 1715731200000, 60_000)
_NOW = datetime(2024, 6, 1, tzinfo=UTC)


class _Replay(NamedTuple):
    """A running replay and a client of it."""

    server: ReplayServer
    client: httpx.Client

    def get(self, fault: str | None, ticker: str = "C:EURUSD", query: str = "limit=50000") -> httpx.Response:
        """The answer to a request for a day's minutes that meets this fault."""
        self.server.faults[:] = [fault]
        return self.client.get(f"{_DAY.format(ticker)}?{query}")

    def page(self, fault: str | None, query: str = "limit=50000") -> dict[str, Any]:
        """Its decoded body."""
        page: dict[str, Any] = self.get(fault, query=query).json()
        return page


@pytest.fixture(scope="module")
def replay() -> Iterator[_Replay]:
    """One server for all faults; its clock stands, its timeouts are short."""
    with (
        running(ReplayConfig(now=_NOW, fault_delay=0.05)) as server,
        httpx.Client(base_url=server.url, headers={"Authorization": "Bearer key"}) as client,
    ):
        yield _Replay(server, client)


def _differences(good: dict[str, Any], bad: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The pairs of bars that are not the same, of pages of equal length."""
    return [(a, b) for a, b in zip(good["results"], bad["results"], strict=True) if a != b]


@pytest.mark.parametrize(
    ("fault", "retry_after", "has_body"),
    [
        ("rate_limited:plain", None, True),
        ("rate_limited:0", "0", True),
        ("rate_limited:1", "1", True),
        ("rate_limited:empty", None, False),
    ],
)
def test_rate_limited(replay: _Replay, fault: str, retry_after: str | None, has_body: bool) -> None:  # noqa: FBT001
    """429, with or without Retry-After, with or without a body."""
    answer = replay.get(fault)
    assert answer.status_code == 429
    assert answer.headers.get("retry-after") == retry_after
    assert bool(answer.content) == has_body


@pytest.mark.parametrize(
    ("fault", "content_type"),
    [
        ("server_error:500", "application/json"),
        ("server_error:502", "text/html"),
        ("server_error:503", "text/plain"),
    ],
)
def test_server_error(replay: _Replay, fault: str, content_type: str) -> None:
    """500 as JSON, 502 as the HTML of a gateway, 503 as plain text."""
    answer = replay.get(fault)
    assert (answer.status_code, answer.headers["content-type"]) == (int(fault[-3:]), content_type)


def test_variants_are_chosen_by_chance() -> None:
    """A kind without a variant shows all of its faces in the course of time."""
    plan = FaultPlan(rate=1, seed=1, kinds=("rate_limited", "server_error"), script=())
    assert Counter(plan.next() for _ in range(400)).keys() == {
        *(f"rate_limited:{variant}" for variant in ("plain", "0", "1", "empty")),
        *(f"server_error:{status}" for status in (500, 502, 503)),
    }


def test_timeout(replay: _Replay) -> None:
    """After a silence the connection is dropped without an answer."""
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        replay.get("timeout")


def test_a_client_that_does_not_wait_ends_the_silence() -> None:
    """A client's own time-out comes first, and the server can still be stopped at once."""
    with (
        running(ReplayConfig(now=_NOW, fault_delay=60, faults=("timeout",))) as server,
        pytest.raises(httpx.ReadTimeout),
    ):
        httpx.get(f"{server.url}{_DAY.format('C:EURUSD')}?apiKey=k", timeout=0.1)


def test_broken_connection(replay: _Replay) -> None:
    """The headers promise a whole body, half of it comes, and the connection closes."""
    whole, sizes = len(replay.get(None).content), list[int]()
    replay.server.faults[:] = ["broken_connection"]
    with replay.client.stream("GET", f"{_DAY.format('C:EURUSD')}?limit=50000") as answer:
        assert (answer.status_code, int(answer.headers["content-length"])) == (200, whole)
        with pytest.raises(httpx.RemoteProtocolError):
            sizes.extend(len(chunk) for chunk in answer.iter_raw())
    assert sum(sizes) == whole // 2


def test_a_connection_that_was_cut_does_no_harm_to_the_next(replay: _Replay) -> None:
    """After either way of hanging up the server answers as before."""
    for fault in CUT_SHORT:
        with pytest.raises(httpx.RemoteProtocolError):
            replay.get(fault)
        assert replay.get(None).status_code == 200


@pytest.mark.parametrize("fault", ["broken_json", "cut_json"])
def test_broken_bodies_are_whole_http_answers(replay: _Replay, fault: str) -> None:
    """The status is 200 and the length is right, but the body is not JSON."""
    good = replay.get(None)
    for _ in range(20):
        answer = replay.get(fault)
        assert (answer.status_code, int(answer.headers["content-length"])) == (200, len(answer.content))
        assert (len(answer.content) < len(good.content)) == (fault == "cut_json")
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(answer.content)


def test_wrong_types(replay: _Replay) -> None:
    """One price, or the time, of one bar comes as a text."""
    ((before, after),) = _differences(replay.page(None), replay.page("wrong_types"))
    assert [key for key in before if after[key] == str(before[key])] == [
        key for key in before if after[key] != before[key]
    ]


def test_page_cycle(replay: _Replay) -> None:
    """next_url leads to the very page that carries it, for the first page and for the ones after."""
    first = replay.get("page_cycle", query="limit=10&apiKey=k")
    assert first.json()["next_url"] == f"{replay.server.url}{_DAY.format('C:EURUSD')}?limit=10"
    second = replay.page(None, query="limit=10")["next_url"]
    replay.server.faults[:] = ["page_cycle"]
    assert replay.client.get(second).json()["next_url"] == second


def test_off_minute(replay: _Replay) -> None:
    """One bar starts within a minute."""
    ((before, after),) = _differences(replay.page(None), replay.page("off_minute"))
    assert 0 < after["t"] - before["t"] < 60_000


@pytest.mark.parametrize("sort", ["asc", "desc"])
def test_out_of_range(replay: _Replay, sort: str) -> None:
    """One bar lies before or after the range, in the place where its time belongs."""
    sides = set()
    for _ in range(20):
        times = [bar["t"] for bar in replay.page("out_of_range", query=f"limit=50000&sort={sort}")["results"]]
        (outside,) = (t for t in times if t not in _MINUTES)
        assert times == sorted(times, reverse=sort == "desc")
        sides.add(outside < _MINUTES.start)
    assert sides == {True, False}


@pytest.mark.parametrize(("fault", "same"), [("identical_duplicate", True), ("differing_duplicate", False)])
def test_duplicates(replay: _Replay, fault: str, same: bool) -> None:  # noqa: FBT001
    """One minute comes twice: with the same values, or with others; the counts agree with what is there."""
    page = replay.page(fault)
    ((ts, _),) = (item for item in Counter(bar["t"] for bar in page["results"]).items() if item[1] == 2)
    one, other = (bar for bar in page["results"] if bar["t"] == ts)
    assert (one == other) == same
    assert page["resultsCount"] == page["count"] == len(page["results"])


def test_nan_price(replay: _Replay) -> None:
    """One price is the literal NaN, which JSON does not have."""
    text = replay.get("nan_price").text
    assert text.count(":NaN") == 1
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(text)


def test_high_below_low(replay: _Replay) -> None:
    """One bar has its high below its low."""
    ((_, after),) = _differences(replay.page(None), replay.page("high_below_low"))
    assert after["h"] < after["l"]


def test_close_outside(replay: _Replay) -> None:
    """One bar opens or closes outside its high and low."""
    ((_, after),) = _differences(replay.page(None), replay.page("close_outside"))
    assert not (after["l"] <= after["o"] <= after["h"] and after["l"] <= after["c"] <= after["h"])


def test_wrong_count(replay: _Replay) -> None:
    """The field resultsCount is not the number of bars; the bars are right."""
    good, bad = replay.page(None), replay.page("wrong_count")
    assert bad["results"] == good["results"]
    assert bad["resultsCount"] != len(bad["results"])


def test_vw_outside(replay: _Replay) -> None:
    """One bar has its average outside high and low; an index has none that could be."""
    ((_, after),) = _differences(replay.page(None), replay.page("vw_outside"))
    assert after["vw"] > after["h"]
    index = replay.get(None, ticker="I:SPX").json()["results"]
    assert replay.get("vw_outside", ticker="I:SPX").json()["results"] == index


def test_a_page_without_bars_cannot_be_spoiled() -> None:
    """A fault in a bar leaves an empty page as it is."""
    asked = Asked(url="http://replay.test/", start=0, end=60_000, ascending=True)
    for kind in SPOILERS:
        body = msgspec.json.decode(spoil(b'{"resultsCount":0}', kind, asked, random.Random(0)))  # noqa: S311
        assert body == ({"resultsCount": 0} | ({"next_url": asked.url} if kind == "page_cycle" else {}))


def test_a_refusal_is_not_spoiled(replay: _Replay) -> None:
    """An error stays the error it is; only good answers are spoiled."""
    replay.server.faults[:] = ["broken_json"]
    assert httpx.get(f"{replay.server.url}{_DAY.format('C:EURUSD')}").json()["error"] == "API Key was not provided"


def test_a_script_goes_before_chance_and_only_bars_consume_it(replay: _Replay) -> None:
    """Entries are taken in order, one for each request for bars, None answering well; others leave it alone."""
    replay.server.faults[:] = ["server_error:503", None, "rate_limited:0"]
    assert replay.client.get("/v1/marketstatus/now").status_code == 200
    assert [replay.client.get(_DAY.format("C:EURUSD")).status_code for _ in range(4)] == [503, 200, 429, 200]
    assert replay.server.faults == []
    assert [served.fault for served in replay.server.requests[-4:]] == [
        "server_error:503",
        None,
        "rate_limited:0",
        None,
    ]


def test_chance_is_repeatable_and_keeps_its_rate() -> None:
    """The same seed gives the same faults, about as often as asked; another seed gives others."""
    first, same, other = (
        [plan.next() for _ in range(2_000)]
        for plan in (FaultPlan(rate=0.2, seed=seed, kinds=RANDOM_KINDS, script=()) for seed in (7, 7, 8))
    )
    assert first == same != other
    assert 320 < sum(fault is not None for fault in first) < 480
    assert {fault.partition(":")[0] for fault in first if fault} == set(RANDOM_KINDS)


def test_the_kinds_of_faults() -> None:
    """Chance picks every kind but the one that would change what a careful client stores."""
    assert set(FAULT_KINDS) - set(RANDOM_KINDS) == {"vw_outside"}
    assert set(HARMLESS) < set(FAULT_KINDS)


@pytest.mark.parametrize(
    ("fault", "says"),
    [("earthquake", "there are rate_limited"), ("server_error:404", "500, 502, 503"), ("cut_json:1", "none")],
)
def test_an_unknown_fault_is_refused(fault: str, says: str) -> None:
    """A name that is no fault is told with the names that are."""
    with pytest.raises(ValueError, match=says):
        check(fault)
