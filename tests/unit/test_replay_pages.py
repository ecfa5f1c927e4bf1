from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.provider_calls.request import Request
from service.replay.app import ReplayApp
from service.replay.config import ReplayConfig
from service.replay.market import market_of

_NOW = datetime(2024, 6, 1, tzinfo=UTC)


class _Client:
    """Asks an application without HTTP."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        config = ReplayConfig(**{"now": _NOW, **options})
        self.clock = config.now or _NOW
        self.app = ReplayApp(config, market_of(config), clock=lambda: self.clock)

    def get(self, url: str) -> dict[str, Any]:
        """The decoded body; fails unless the answer is 200."""
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        answer = self.app.answer(
            Request(method="GET", path=parts.path, query=query, base="http://replay.test", bearer="key")
        )
        assert answer.status == 200, answer.body
        decoded: dict[str, Any] = msgspec.json.decode(answer.body)
        return decoded

    def pages(self, url: str) -> list[dict[str, Any]]:
        """All pages, following next_url."""
        pages = [self.get(url)]
        while "next_url" in pages[-1]:
            pages.append(self.get(pages[-1]["next_url"]))
        return pages

    def results(self, url: str) -> list[dict[str, Any]]:
        """The bars of all pages."""
        return [bar for page in self.pages(url) for bar in page.get("results", [])]


_CLIENT = _Client()


def _aggs(ticker: str, span: str, since: object, until: object, **query: object) -> str:
    text = "&".join(f"{name}={value}" for name, value in {"limit": 50_000, **query}.items())
    return f"/v2/aggs/ticker/{ticker}/range/{span}/{since}/{until}?{text}"


def _ms(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp() * 1000)  # type: ignore[arg-type, misc]


def test_a_page_has_the_provider_s_fields() -> None:
    """The keys come in the provider's order, and counts are those of the page."""
    page = _CLIENT.get(_aggs("C:EURUSD", "1/minute", "2024-05-14", "2024-05-14"))
    assert list(page) == [
        "ticker", "queryCount", "resultsCount", "adjusted", "results", "status", "request_id", "count",
    ]  # fmt: skip
    assert page["queryCount"] == page["resultsCount"] == page["count"] == len(page["results"])
    assert (page["ticker"], page["adjusted"], page["status"]) == ("C:EURUSD", True, "OK")
    assert len(bytes.fromhex(page["request_id"])) == 16
    assert set(page["results"][0]) == {"v", "vw", "o", "c", "h", "l", "t", "n"}


def test_nothing_found_has_no_results_key() -> None:
    """A closed day, an unknown ticker and the future are 200 with a count of 0 and no results."""
    for url in (
        _aggs("C:EURUSD", "1/minute", "2024-05-11", "2024-05-11"),
        _aggs("X:NOSUCH", "1/minute", "2024-05-11", "2024-05-11", sort="desc"),
        _aggs("X:BTCUSD", "1/day", "2030-01-01", "2030-01-02"),
        _aggs("X:BTCUSD", "1/minute", 0, 1),
    ):
        page = _CLIENT.get(url)
        assert list(page) == ["ticker", "queryCount", "resultsCount", "adjusted", "status", "request_id"]
        assert page["resultsCount"] == page["queryCount"] == 0


def test_indices_have_only_prices() -> None:
    """An index bar has o h l c t and nothing else."""
    bars = _CLIENT.results(_aggs("I:SPX", "5/minute", "2024-05-14", "2024-05-14"))
    assert {key for bar in bars for key in bar} == {"o", "h", "l", "c", "t"}


def test_from_snaps_to_the_start_and_to_to_the_end_of_its_bar() -> None:
    """Any instant within a minute asks for the whole minute: `to` is inclusive."""
    bars = _CLIENT.results(_aggs("X:BTCUSD", "1/minute", _ms(2024, 5, 14, 10) + 59_999, _ms(2024, 5, 14, 10, 3)))
    assert [bar["t"] for bar in bars] == [_ms(2024, 5, 14, 10, minute) for minute in range(4)]


def test_snapping_widens_to_whole_coarse_bars() -> None:
    """An hour asked for by two of its minutes is the hour of all its minutes."""
    (bar,) = _CLIENT.results(_aggs("X:BTCUSD", "1/hour", _ms(2024, 5, 14, 10, 20), _ms(2024, 5, 14, 10, 30)))
    minutes = _CLIENT.results(_aggs("X:BTCUSD", "1/minute", _ms(2024, 5, 14, 10), _ms(2024, 5, 14, 10, 59)))
    assert bar["t"] == _ms(2024, 5, 14, 10)
    assert (bar["o"], bar["c"]) == (minutes[0]["o"], minutes[-1]["c"])
    assert (bar["h"], bar["l"]) == (max(m["h"] for m in minutes), min(m["l"] for m in minutes))
    assert bar["v"] == pytest.approx(sum(m["v"] for m in minutes))
    assert bar["n"] == sum(m["n"] for m in minutes)
    assert bar["vw"] == pytest.approx(sum(m["v"] * m["vw"] for m in minutes) / bar["v"])


def test_a_date_includes_its_whole_day_in_utc_for_crypto() -> None:
    """Crypto's dates are UTC days, up to 23:59."""
    bars = _CLIENT.results(_aggs("X:BTCUSD", "1/minute", "2024-05-14", "2024-05-14"))
    assert (bars[0]["t"], bars[-1]["t"]) == (_ms(2024, 5, 14), _ms(2024, 5, 14, 23, 59))


def test_a_date_means_new_york_for_stocks() -> None:
    """A stock's winter day ends at 20:00 New York, which is the next day in UTC; its daily bar starts at 05:00 UTC."""
    bars = _CLIENT.results(_aggs("AAPL", "1/minute", "2024-01-09", "2024-01-09"))
    assert _ms(2024, 1, 9, 9) <= bars[0]["t"] < _ms(2024, 1, 9, 9, 10)
    assert _ms(2024, 1, 10, 0, 50) < bars[-1]["t"] < _ms(2024, 1, 10, 1)
    (day,) = _CLIENT.results(_aggs("AAPL", "1/day", "2024-01-09", "2024-01-09"))
    assert day["t"] == _ms(2024, 1, 9, 5)
    assert day["v"] == sum(bar["v"] for bar in bars)


def test_weeks_begin_on_sunday_and_quarters_by_the_calendar() -> None:
    """Coarse bars carry the start of their calendar span."""
    weeks = _CLIENT.results(_aggs("X:BTCUSD", "1/week", "2024-05-06", "2024-05-15"))
    assert [bar["t"] for bar in weeks] == [_ms(2024, 5, 5), _ms(2024, 5, 12)]
    (quarter,) = _CLIENT.results(_aggs("C:EURUSD", "1/quarter", "2024-02-06", "2024-02-06"))
    assert quarter["t"] == _ms(2024, 1, 1)


@pytest.mark.parametrize("span", ["1/minute", "7/minute", "1/hour", "1/day"])
def test_descending_is_ascending_reversed(span: str) -> None:
    """`sort=desc` gives the same bars, newest first, through all of its pages."""
    ascending = _CLIENT.results(_aggs("C:EURUSD", span, "2024-05-09", "2024-05-14"))
    descending = _CLIENT.results(_aggs("C:EURUSD", span, "2024-05-09", "2024-05-14", sort="desc", limit=1000))
    assert descending == ascending[::-1]


@settings(max_examples=60, deadline=None)
@given(
    ticker=st.sampled_from(["C:EURUSD", "X:BTCUSD", "I:SPX", "AAPL"]),
    span=st.sampled_from(["1/minute", "1/minute", "3/minute", "45/minute", "1/hour", "5/hour", "1/day", "1/week"]),
    window=st.tuples(st.integers(_ms(2024, 3, 8), _ms(2024, 3, 12)), st.integers(0, 4 * 86_400_000)),
    limit=st.integers(40, 9_000),
    sort=st.sampled_from(["asc", "desc"]),
)
def test_pages_of_any_limit_hold_the_same_bars(
    ticker: str, span: str, window: tuple[int, int], limit: int, sort: str
) -> None:
    """Whatever the limit, the pages put together are the one large page: no bar is split, lost or repeated."""
    since, until = window[0], sum(window)
    whole = _CLIENT.get(_aggs(ticker, span, since, until, sort=sort))
    assert "next_url" not in whole
    pages = _CLIENT.pages(_aggs(ticker, span, since, until, sort=sort, limit=limit))
    assert [bar for page in pages for bar in page.get("results", [])] == whole.get("results", [])
    assert sum(page["queryCount"] for page in pages) == whole["queryCount"]
    for page in pages:
        assert page["queryCount"] <= limit or page["resultsCount"] == 1
        assert page["resultsCount"] or len(pages) == 1


def test_the_limit_counts_one_minute_bars() -> None:
    """A page of hourly bars under a limit of 200 minutes holds three whole hours; next_url begins at the fourth."""
    page = _CLIENT.get(_aggs("X:BTCUSD", "1/hour", "2024-05-14", "2024-05-14", limit=200))
    assert (page["resultsCount"], [bar["t"] for bar in page["results"]][-1]) == (3, _ms(2024, 5, 14, 2))
    assert 150 < page["queryCount"] <= 200
    assert f"/{_ms(2024, 5, 14, 3)}/2024-05-14?cursor=" in page["next_url"]


def test_a_page_holds_at_least_one_bar() -> None:
    """A day does not fit in a limit of 10 minutes and is served whole nevertheless."""
    pages = _CLIENT.pages(_aggs("X:BTCUSD", "1/day", "2024-05-13", "2024-05-14", limit=10))
    assert [page["resultsCount"] for page in pages] == [1, 1]


def test_next_url_is_absolute_opaque_and_without_key() -> None:
    """It stands on the host that was asked, keeps limit, sort and adjusted, and leaves the key to be sent again."""
    url = _aggs("C:EURUSD", "1/minute", "2024-05-14", "2024-05-15", limit=7, sort="desc", adjusted="false")
    first = _CLIENT.get(url + "&apiKey=secret")
    assert first["next_url"].startswith("http://replay.test/v2/aggs/ticker/C:EURUSD/range/1/minute/2024-05-14/")
    assert "secret" not in first["next_url"]
    assert set(dict(parse_qsl(urlsplit(first["next_url"]).query))) == {"cursor"}
    second = _CLIENT.get(first["next_url"])
    assert (len(second["results"]), second["adjusted"]) == (7, False)
    assert second["results"][0]["t"] < first["results"][-1]["t"]


@pytest.mark.parametrize("sort", ["asc", "desc"])
def test_a_full_page_without_more_has_no_next_url(sort: str) -> None:
    """A limit that is met exactly by the last bar leads nowhere; one bar less leads on."""
    count = _CLIENT.get(_aggs("C:EURUSD", "1/minute", "2024-05-14", "2024-05-14"))["count"]
    exact, short = (
        _CLIENT.get(_aggs("C:EURUSD", "1/minute", "2024-05-14", "2024-05-14", limit=limit, sort=sort))
        for limit in (count, count - 1)
    )
    assert "next_url" not in exact
    assert "next_url" in short


def test_the_minute_that_runs_is_served_as_it_forms() -> None:
    """The open minute has a bar that changes until it ends; nothing later exists."""
    client = _Client(now=datetime(2024, 5, 14, 10, 0, 20, tzinfo=UTC))
    url = _aggs("X:BTCUSD", "1/minute", _ms(2024, 5, 14, 9, 59), "2024-05-14")
    early = client.get(url)["results"]
    client.clock += timedelta(seconds=20)
    late = client.get(url)["results"]
    client.clock += timedelta(seconds=20)
    done = client.get(url)["results"]
    assert [bar["t"] for bar in early] == [_ms(2024, 5, 14, 9, 59), _ms(2024, 5, 14, 10)]
    assert early[0] == late[0] == done[0]
    assert early[1]["v"] < late[1]["v"] < done[1]["v"]
    assert early[1]["o"] == late[1]["o"] == done[1]["o"]
    assert client.get(url)["results"] == client.get(url + "&sort=desc")["results"][::-1]


def test_the_forming_bar_counts_like_any_other() -> None:
    """Under a limit that the finished bars fill, the forming one is on the next page."""
    client = _Client(now=datetime(2024, 5, 14, 10, 0, 20, tzinfo=UTC))
    pages = client.pages(_aggs("X:BTCUSD", "1/minute", _ms(2024, 5, 14, 9, 58), "2024-05-14", limit=2))
    assert [page["resultsCount"] for page in pages] == [2, 1]


def test_a_delay_hides_the_newest_minutes() -> None:
    """A delayed plan shows bars that ended that long ago, no forming one, and says DELAYED."""
    client = _Client(now=datetime(2024, 5, 14, 10, 0, 20, tzinfo=UTC), delay=15)
    page = client.get(_aggs("X:BTCUSD", "1/minute", "2024-05-14", "2024-05-14"))
    assert page["status"] == "DELAYED"
    assert page["results"][-1]["t"] == _ms(2024, 5, 14, 9, 44)


def test_an_end_of_day_plan_ends_at_new_york_s_midnight() -> None:
    """Nothing after the last New York midnight (04:00 UTC in summer) is visible, and the status is DELAYED."""
    client = _Client(now=datetime(2024, 5, 14, 10, 0, tzinfo=UTC), end_of_day=True)
    page = client.get(_aggs("X:BTCUSD", "1/minute", "2024-05-13", "2024-05-14"))
    assert page["status"] == "DELAYED"
    assert page["results"][-1]["t"] == _ms(2024, 5, 14, 3, 59)


def test_history_before_its_start_is_clipped() -> None:
    """Bars before `history_start` do not exist, in either way of asking."""
    client = _Client(history_start=datetime(2024, 5, 14, 12, tzinfo=UTC))
    for span in ("1/minute", "5/minute"):
        bars = client.results(_aggs("X:BTCUSD", span, "2024-05-01", "2024-05-14"))
        assert bars[0]["t"] == _ms(2024, 5, 14, 12)


def test_no_forming_bar_before_the_start_of_history() -> None:
    """A history that starts in the future holds nothing, the forming bar included."""
    client = _Client(history_start=_NOW + timedelta(days=1), now=_NOW + timedelta(seconds=30))
    for sort in ("asc", "desc"):
        assert not client.results(_aggs("X:BTCUSD", "1/minute", "2024-05-31", "2024-06-03", sort=sort))


def test_a_bad_bar_is_always_impossible() -> None:
    """The named minute has its high below its low at every request, even if it had no bar; the others are sound."""
    minutes = [datetime(2024, 5, 14, 10, minute, tzinfo=UTC) for minute in range(0, 60, 5)]
    client = _Client(bad_bars=tuple(("EURUSD", minute) for minute in minutes))
    for _ in range(2):
        bars = client.results(_aggs("C:EURUSD", "1/minute", "2024-05-14", "2024-05-14"))
        assert [bar["t"] for bar in bars if bar["h"] < bar["l"]] == [int(at.timestamp() * 1000) for at in minutes]


def test_a_bad_bar_on_a_missing_minute_is_made_up() -> None:
    """A minute without a bar gets one, so that the bar is there to be bad; a closed day stays empty."""
    whole = {bar["t"] for bar in _CLIENT.results(_aggs("C:EURUSD", "1/minute", "2024-05-14", "2024-05-14"))}
    missing = next(ms for ms in range(_ms(2024, 5, 14), _ms(2024, 5, 15), 60_000) if ms not in whole)
    at, saturday = datetime.fromtimestamp(missing / 1000, UTC), datetime(2024, 5, 11, 12, tzinfo=UTC)
    client = _Client(bad_bars=(("EURUSD", at), ("EURUSD", saturday)))
    bars = client.results(_aggs("C:EURUSD", "1/minute", "2024-05-14", "2024-05-14"))
    assert [bar["t"] for bar in bars if bar["h"] < bar["l"]] == [missing]
    assert not client.results(_aggs("C:EURUSD", "1/minute", "2024-05-11", "2024-05-11"))


def test_an_absurd_multiplier_is_one_bar() -> None:
    """A multiplier beyond all of time yields a single bar of everything there is."""
    client = _Client(history_start=datetime(2024, 5, 31, tzinfo=UTC))
    for timespan in ("minute", "day", "week", "month"):
        page = client.get(_aggs("X:BTCUSD", f"{10**20}/{timespan}", "2024-05-01", "2024-05-31"))
        assert page["resultsCount"] == 1
        assert page["queryCount"] > 1400
