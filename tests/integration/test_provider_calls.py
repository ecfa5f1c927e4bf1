"""The provider's own calls, asked by its own clients, and against the replay as the reference implementation."""

import asyncio
import contextlib
import http.client
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import massive  # type: ignore[import-untyped]  # the package has no types
import polygon
import psycopg
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient
from psycopg import sql

from service import base_pages, catalogue
from service.api.app import create_app
from service.bars import Bars, to_ms
from service.db.connect import Database
from service.db.migrate import migrate
from service.db.preflight import checked
from service.errors import DatabaseError
from service.provider_calls import cursors
from service.replay import ReplayConfig, ReplayServer, running
from service.settings import Settings, load
from tests.integration.marketdata import at, invent, minutes, only_active, put

LONG_BEFORE = at("2020-01-01 00:00")
SINCE = at("2024-02-25 00:00")
"""The bars begin here: six weeks, in which New York's clocks go forward."""
NOW = at("2024-04-03 12:00")
TICKERS = {"EURUSD": "C:EURUSD", "BTCUSD": "X:BTCUSD", "SPX500": "I:SPX", "AAPL": "AAPL"}
SECRET = "a-key-that-must-not-be-seen"
HOUR = 3_600_000
DAY = 24 * HOUR


class Served(NamedTuple):
    """Candlewick and the reference, with the same bars at the same moment."""

    url: str
    replay: ReplayServer


def app_of(db: Database, **changes: str) -> Any:  # noqa: ANN401 - Litestar
    chosen: Settings = load({"DATABASE_URL": db.url, "ENGINE": db.engine.name} | changes, env_file=None)
    return create_app(checked(db.url, db.engine.name), chosen, lambda: NOW)


async def fill(db: Database, bars: Callable[[str, datetime, datetime], Bars]) -> None:
    """The replay's bars; nothing before them, and XAUUSD on two days only."""
    async with db, db.connection() as conn:
        await catalogue.add(conn, "AAPL", name="Apple Inc.")
        await only_active(conn, *TICKERS, "XAUUSD")
        for symbol in TICKERS:
            await put(conn, db.engine, symbol, LONG_BEFORE, NOW, now=NOW, bars=bars(symbol, SINCE, NOW))
        few = bars("XAUUSD", at("2024-04-01 00:00"), at("2024-04-03 00:00"))
        await put(conn, db.engine, "XAUUSD", at("2024-04-01 00:00"), at("2024-04-03 00:00"), now=NOW, bars=few)
        await db.engine.refresh(conn, {}, NOW)


@pytest.fixture(scope="module")
def replay() -> Iterator[ReplayServer]:
    with running(ReplayConfig(now=NOW, history_start=SINCE)) as server:
        yield server


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def db(request: pytest.FixtureRequest, replay: ReplayServer) -> Iterator[Database]:
    """The filled database, which no test changes."""
    server = request.getfixturevalue(f"{request.param}_server")
    name = f"candlewick_{os.getpid()}_provider"
    server.admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    try:
        migrate(server.url(name), server.engine)
        asyncio.run(fill(checked(server.url(name), server.engine), replay.bars))
        yield checked(server.url(name), server.engine)
    finally:
        server.admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:  # noqa: ANN401 - Litestar
    """The URL of an application that listens on loopback meanwhile."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.02)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def served(db: Database, replay: ReplayServer) -> Iterator[Served]:
    with serving(app_of(db)) as url:
        yield Served(url, replay)


@pytest.fixture(params=[massive.RESTClient, polygon.RESTClient], ids=["massive", "polygon"])
def client(request: pytest.FixtureRequest, served: Served) -> Iterator[Any]:
    """Each of the two official clients, its base URL pointed at Candlewick."""
    made = request.param(SECRET, base=served.url, retries=0)
    yield made
    made.client.clear()


@pytest.fixture
def reference(served: Served) -> Iterator[Any]:
    made = massive.RESTClient("key", base=served.replay.url, retries=0)
    yield made
    made.client.clear()


def get(url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> tuple[int, dict[str, str], Any]:
    """Status, headers and decoded body."""
    parts = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parts.hostname or "", parts.port)) as conn:
        conn.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), headers=dict(headers or {}))
        answer = conn.getresponse()
        body = answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, json.loads(body or b"null")


def aggs(base: str, ticker: str, span: str, since: object, until: object, **query: object) -> str:
    return f"{base}/v2/aggs/ticker/{ticker}/range/{span}/{since}/{until}?{urlencode({'apiKey': 'key', **query})}"


def pages(url: str) -> list[dict[str, Any]]:
    """All bodies, following next_url; the key is sent again."""
    found: list[dict[str, Any]] = []
    while True:
        status, _, body = get(url, {"Authorization": "Bearer key"})
        assert status == 200, body
        found.append(body)
        if "next_url" not in body:
            return found
        url = body["next_url"]
        assert "key" not in url
        assert len(found) < 200


def results(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [bar for body in bodies for bar in body.get("results", [])]


def assert_same_bars(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """The same fields, the same values: sums of many floats and their averages to eight digits."""
    assert [(bar["t"], list(bar)) for bar in ours] == [(bar["t"], list(bar)) for bar in theirs]
    for name in ("o", "h", "l", "c", "n"):
        assert [bar.get(name) for bar in ours] == [bar.get(name) for bar in theirs]
    for name in ("v", "vw"):
        if theirs and name in theirs[0]:
            assert [bar[name] for bar in ours] == pytest.approx([bar[name] for bar in theirs], rel=1e-8, abs=1e-8)


# The official clients


@pytest.mark.parametrize("sort", ["asc", "desc"])
@pytest.mark.parametrize(
    ("ticker", "multiplier", "timespan", "limit", "count"),
    [
        ("C:EURUSD", 1, "minute", 3000, 13_000),
        ("C:EURUSD", 15, "minute", 5000, 864),
        ("X:BTCUSD", 1, "hour", 500, 264),
        ("X:BTCUSD", 4, "hour", None, 66),
        ("AAPL", 1, "day", 3, 9),
        ("I:SPX", 1, "week", 5, 2),
        ("X:BTCUSD", 1, "month", 1, 1),
    ],
)
def test_the_official_clients_page_through_bars_of_any_length(
    client: Any,  # noqa: ANN401 - of either package
    reference: Any,  # noqa: ANN401
    *,
    ticker: str,
    multiplier: int,
    timespan: str,
    limit: int | None,
    count: int,
    sort: str,
) -> None:
    """list_aggs follows next_url to the end and yields what the reference yields, each bar once."""
    call = (ticker, multiplier, timespan, "2024-03-04", "2024-03-14")
    ours = list(client.list_aggs(*call, adjusted=False, sort=sort, limit=limit))
    theirs = list(reference.list_aggs(*call, adjusted=False, sort=sort, limit=50_000))
    assert len(ours) == pytest.approx(count, rel=0.1)
    fields = ("timestamp", "open", "high", "low", "close", "transactions")
    assert [[getattr(bar, name) for name in fields] for bar in ours] == [
        [getattr(bar, name) for name in fields] for bar in theirs
    ]
    times = [bar.timestamp for bar in ours]
    assert times == sorted(set(times), reverse=sort == "desc")


def test_the_official_clients_get_bars_at_once(client: Any) -> None:  # noqa: ANN401
    """get_aggs takes datetimes, and an index has prices alone."""
    bars = client.get_aggs("I:SPX", 30, "minute", at("2024-03-12 13:30"), at("2024-03-12 19:59"), limit=50_000)
    assert [bar.timestamp for bar in bars] == [to_ms(at("2024-03-12 13:30")) + place * HOUR // 2 for place in range(13)]
    assert {(bar.volume, bar.vwap, bar.transactions) for bar in bars} == {(None, None, None)}
    assert client.get_aggs("C:EURUSD", 1, "minute", "2024-03-09", "2024-03-09") == []


@pytest.mark.parametrize(
    ("ticker", "day", "dated"),
    [
        ("X:BTCUSD", "2024-04-02", "2024-04-02 23:59:59.999"),
        ("C:EURUSD", "2024-04-02", "2024-04-02 23:59:59.999"),
        ("AAPL", "2024-04-02", "2024-04-02 20:00"),
        ("I:SPX", "2024-04-02", "2024-04-02 20:00"),
    ],
)
def test_the_official_clients_get_the_previous_day(
    client: Any,  # noqa: ANN401
    reference: Any,  # noqa: ANN401
    *,
    ticker: str,
    day: str,
    dated: str,
) -> None:
    """The last day that is over, dated as the provider dates it: to its last millisecond, or to the close."""
    (bar,) = client.get_previous_close_agg(ticker)
    (expected,) = reference.get_aggs(ticker, 1, "day", day, day)
    assert (bar.ticker, bar.timestamp) == (ticker, to_ms(at(dated)))
    assert (bar.open, bar.high, bar.low, bar.close) == (expected.open, expected.high, expected.low, expected.close)
    assert client.get_previous_close_agg("C:NOSUCH") == []


@pytest.mark.parametrize(
    ("locale", "market", "day", "tickers"),
    [
        ("global", "fx", "2024-04-02", ["C:EURUSD", "C:XAUUSD"]),
        ("global", "fx", "2024-03-12", ["C:EURUSD"]),
        ("global", "crypto", "2024-03-09", ["X:BTCUSD"]),
        ("us", "stocks", "2024-03-11", ["AAPL"]),
        ("us", "indices", "2024-03-12", ["I:SPX"]),
        ("us", "stocks", "2024-03-10", []),
        ("us", "stocks", "2030-01-01", []),
    ],
)
def test_the_official_clients_get_a_market_s_day(
    client: Any,  # noqa: ANN401
    reference: Any,  # noqa: ANN401
    *,
    locale: str,
    market: str,
    day: str,
    tickers: list[str],
) -> None:
    """Every instrument with a bar on that day; stocks and indices by New York's days, whatever its clocks do."""
    bars = client.get_grouped_daily_aggs(day, locale=locale, market_type=market, adjusted=False)
    assert [bar.ticker for bar in bars] == tickers
    for bar in bars:
        (expected,) = reference.get_aggs(bar.ticker, 1, "day", day, day)
        assert (bar.open, bar.high, bar.low, bar.close, bar.transactions) == (
            expected.open, expected.high, expected.low, expected.close, expected.transactions,
        )  # fmt: skip
        assert bar.volume == (expected.volume if expected.volume is None else pytest.approx(expected.volume))
        assert bar.vwap == (expected.vwap if expected.vwap is None else pytest.approx(expected.vwap))


def test_the_official_clients_list_tickers(client: Any) -> None:  # noqa: ANN401
    """Page by page, each once, in order; those that are switched off only when asked for."""
    listed = list(client.list_tickers(limit=2))
    assert [one.ticker for one in listed] == ["AAPL", "C:EURUSD", "C:XAUUSD", "I:SPX", "X:BTCUSD"]
    assert [one.market for one in listed] == ["stocks", "fx", "fx", "indices", "crypto"]
    off = [one.ticker for one in client.list_tickers(active=False, limit=7)]
    assert len(off) == len(set(off)) == 46 - 5
    backwards = [one.ticker for one in client.list_tickers(sort="market", order="desc", limit=1)]
    assert backwards == ["AAPL", "I:SPX", "C:XAUUSD", "C:EURUSD", "X:BTCUSD"]


@pytest.mark.parametrize(
    ("chosen", "tickers"),
    [
        ({"ticker": "C:EURUSD"}, ["C:EURUSD"]),
        ({"ticker": "c:eurusd"}, []),
        ({"ticker_gt": "C:EURUSD"}, ["C:XAUUSD", "I:SPX", "X:BTCUSD"]),
        ({"ticker_gte": "C:EURUSD", "ticker_lt": "I:SPX"}, ["C:EURUSD", "C:XAUUSD"]),
        ({"ticker_lte": "C:EURUSD"}, ["AAPL", "C:EURUSD"]),
        ({"market": "crypto"}, ["X:BTCUSD"]),
        ({"market": "otc"}, []),
        ({"type": "CS"}, ["AAPL"]),
        ({"type": "ETF"}, []),
        ({"search": "apple"}, ["AAPL"]),
        ({"search": "us dollar euro"}, ["C:EURUSD"]),
        ({"search": "%"}, []),
        ({"params": {"locale": "us"}}, ["AAPL", "I:SPX"]),
        ({"params": {"search": "", "whatever": "1"}}, ["AAPL", "C:EURUSD", "C:XAUUSD", "I:SPX", "X:BTCUSD"]),
    ],
)
def test_tickers_are_filtered(client: Any, chosen: dict[str, Any], tickers: list[str]) -> None:  # noqa: ANN401
    assert [one.ticker for one in client.list_tickers(**chosen)] == tickers


def test_the_official_clients_get_a_ticker_s_details(client: Any) -> None:  # noqa: ANN401
    """What follows from the ticker, and nothing else."""
    pair, share = client.get_ticker_details("C:EURUSD"), client.get_ticker_details("AAPL")
    assert (pair.market, pair.locale, pair.active) == ("fx", "global", True)
    assert (pair.base_currency_symbol, pair.base_currency_name) == ("EUR", "Euro")
    assert (pair.currency_symbol, pair.currency_name) == ("USD", "United States Dollar")
    assert (share.name, share.type, share.currency_name, share.primary_exchange) == ("Apple Inc.", "CS", "usd", None)
    assert client.get_ticker_details("I:SPX").currency_symbol is None


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get_ticker_details("C:NOSUCH"),
        lambda client: client.get_ticker_details("types"),
        lambda client: client.get_last_quote("AAPL"),
        lambda client: client.get_ticker_events("AAPL"),
        lambda client: next(client.list_aggs("AAPL", 0, "minute", "2024-03-04", "2024-03-05")),
        lambda client: next(client.list_tickers(exchange="XNYS")),
    ],
)
def test_the_official_clients_raise_their_own_error(
    client: Any,  # noqa: ANN401
    call: Callable[[Any], object],
) -> None:
    """Refusals in the provider's shape."""
    kinds = massive.exceptions.BadResponse, polygon.exceptions.BadResponse
    with pytest.raises(kinds, match=r'^{"status":"(ERROR|NOT_FOUND)","request_id":"[0-9a-f]{32}","(error|message)":'):
        call(client)


# Against the reference


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(
    ticker=st.sampled_from([*TICKERS.values(), "X:NOSUCH"]),
    span=st.sampled_from(
        ["1/minute", "1/minute", "3/minute", "45/minute", "15/minute", "1/hour", "5/hour", "24/hour", "100/hour"]
    ),
    window=st.tuples(st.integers(to_ms(SINCE) - DAY, to_ms(NOW)), st.integers(0, 6 * DAY)),
    limit=st.one_of(st.integers(200, 9_000), st.just(50_000)),
    sort=st.sampled_from(["asc", "desc"]),
)
def test_answers_are_the_reference_s(
    served: Served, *, ticker: str, span: str, window: tuple[int, int], limit: int, sort: str
) -> None:
    """Body for body, page for page: whatever is asked, in minutes and hours."""
    query = {"limit": limit, "sort": sort, "adjusted": "false"}
    ours, theirs = (
        pages(aggs(base, ticker, span, window[0], sum(window), **query)) for base in (served.url, served.replay.url)
    )
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert list(our) == list(their)
        for name in ("ticker", "queryCount", "resultsCount", "adjusted", "count"):
            assert our.get(name) == their.get(name)
        links = [urlsplit(body["next_url"])[2:] for body in (our, their) if "next_url" in body]
        assert len(set(links)) <= 1
        assert_same_bars(our.get("results", []), their.get("results", []))


@settings(max_examples=40, derandomize=True, database=None, deadline=None)
@given(
    ticker=st.sampled_from(list(TICKERS.values())),
    span=st.sampled_from(["1/day", "2/day", "1/week", "2/week", "1/month", "1/quarter", "1/year"]),
    days=st.tuples(st.dates(SINCE.date(), NOW.date()), st.integers(0, 30)),
    limit=st.integers(1, 30),
    sort=st.sampled_from(["asc", "desc"]),
)
def test_days_and_longer_are_the_reference_s(
    served: Served, *, ticker: str, span: str, days: tuple[Any, int], limit: int, sort: str
) -> None:
    """The same bars; a limit counts days here, and one-minute bars there, so that pages are cut otherwise."""
    since, until = days[0], days[0] + timedelta(days=days[1])
    ours = pages(aggs(served.url, ticker, span, since, until, limit=limit, sort=sort))
    theirs = pages(aggs(served.replay.url, ticker, span, since, until, limit=50_000, sort=sort))
    assert_same_bars(results(ours), results(theirs))
    first, last = results(theirs)[:1], results(theirs)[-1:]
    if first:
        low, high = sorted((first[0]["t"], last[0]["t"]))
        single = results(pages(aggs(served.url, ticker, "1/day", low, high, limit=50_000)))
        assert sum(body["queryCount"] for body in ours) >= len(single)
    for body in ours:
        assert body["queryCount"] <= limit or body["resultsCount"] == 1


@pytest.mark.parametrize(("day", "hours"), [("2024-03-09", 24), ("2024-03-10", 23), ("2024-03-11", 24)])
def test_a_stock_s_dates_are_new_york_s(served: Served, day: str, hours: int) -> None:
    """A day begins at New York's midnight, and one is an hour shorter; crypto's are UTC's."""
    starts = {"2024-03-09": "2024-03-09 05:00", "2024-03-10": "2024-03-10 05:00", "2024-03-11": "2024-03-11 04:00"}
    start = to_ms(at(starts[day]))
    by_date = results(pages(aggs(served.url, "AAPL", "1/minute", day, day)))
    by_instant = results(pages(aggs(served.url, "AAPL", "1/minute", start, start + hours * HOUR - 1)))
    assert by_date == by_instant
    (coin,) = results(pages(aggs(served.url, "X:BTCUSD", "1/day", day, day)))
    assert coin["t"] == to_ms(at(f"{day} 00:00"))


def test_weeks_begin_on_sunday(served: Served) -> None:
    weeks = results(pages(aggs(served.url, "X:BTCUSD", "1/week", "2024-03-05", "2024-03-12")))
    assert [bar["t"] for bar in weeks] == [to_ms(at("2024-03-03 00:00")), to_ms(at("2024-03-10 00:00"))]


# What an answer says of itself


@pytest.mark.parametrize(
    ("ticker", "asked", "told"),
    [("AAPL", "true", False), ("AAPL", "false", False), ("C:EURUSD", "true", True), ("X:BTCUSD", "false", False)],
)
def test_stocks_are_never_adjusted(served: Served, ticker: str, asked: str, told: bool) -> None:  # noqa: FBT001
    for path in (f"ticker/{ticker}/range/1/day/2024-03-04/2024-03-06", f"ticker/{ticker}/prev"):
        assert get(f"{served.url}/v2/aggs/{path}?adjusted={asked}")[2]["adjusted"] is told


def test_what_is_missing_is_told(served: Served) -> None:
    """A range of which something is missing is DELAYED, and says what; one that is all there is OK."""
    status, headers, body = get(aggs(served.url, "C:EURUSD", "1/hour", "2019-12-31", "2024-03-01"))
    assert (status, body["status"], headers["x-complete"]) == (200, "DELAYED", "false")
    assert json.loads(headers["x-missing"])[0]["reason"] == "never requested"
    _, headers, body = get(aggs(served.url, "C:EURUSD", "1/hour", "2024-02-27", "2024-03-01"))
    assert (body["status"], headers["x-complete"], headers.get("x-missing")) == ("OK", "true", None)
    _, headers, body = get(aggs(served.url, "C:NOSUCH", "1/hour", "2024-02-27", "2024-03-01"))
    assert (body["status"], headers["x-complete"]) == ("OK", "false")
    assert list(body) == ["ticker", "queryCount", "resultsCount", "adjusted", "status", "request_id"]
    _, headers, body = get(f"{served.url}/v2/aggs/grouped/locale/global/market/fx/2024-04-02")
    assert (body["status"], headers["x-complete"]) == ("OK", "true")
    _, headers, body = get(f"{served.url}/v2/aggs/grouped/locale/global/market/fx/2024-03-12")
    assert (body["status"], headers["x-complete"]) == ("DELAYED", "false")


def test_a_closed_answer_is_the_same_every_time(served: Served) -> None:
    """With a tag that holds, and from memory; one that reaches the present has neither."""
    url = aggs(served.url, "C:EURUSD", "5/minute", "2024-03-04", "2024-03-06", limit=1000)
    first, again = get(url), get(url)
    assert first[2] == again[2]
    tag = first[1]["etag"]
    status, headers, body = get(url, {"If-None-Match": tag})
    assert (status, headers["etag"], body) == (304, tag, None)
    open_ended = get(aggs(served.url, "C:EURUSD", "5/minute", "2024-04-03", "2024-04-04"))
    assert (open_ended[1]["cache-control"], open_ended[1].get("etag")) == ("no-store", None)


def test_next_url_stands_on_the_host_of_the_request(served: Served) -> None:
    """Even where the answer is kept in memory; and without any key."""
    url = aggs(served.url, "C:EURUSD", "1/minute", "2024-03-04", "2024-03-06", limit=10, apiKey=SECRET)
    for host in ("one.example:8001", "two.example", "one.example:8001"):
        link = get(url, {"Host": host})[2]["next_url"]
        assert link.startswith(f"http://{host}/v2/aggs/ticker/C:EURUSD/range/1/minute/")
        assert SECRET not in link


def test_answers_are_compressed_for_those_who_like_it(served: Served) -> None:
    """The official clients ask for gzip."""
    url = aggs(served.url, "C:EURUSD", "1/minute", "2024-03-04", "2024-03-15", limit=50_000)
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc)) as conn:
        conn.request("GET", url.removeprefix(served.url), headers={"Accept-Encoding": "gzip"})
        answer = conn.getresponse()
        body = answer.read()
    assert (answer.headers["Content-Encoding"], body[:2]) == ("gzip", b"\x1f\x8b")
    assert int(answer.headers["Content-Length"]) == len(body)


# What is refused


GOOD = "C:EURUSD/range/1/minute/2024-03-04/2024-03-05"


@pytest.mark.parametrize(
    ("path", "status", "names"),
    [
        ("/v2/aggs/ticker/C:EURUSD/range/1/minute/yesterday/2024-03-05", 400, "'from'"),
        ("/v2/aggs/ticker/C:EURUSD/range/1/minute/2024-03-05/2024-02-30", 400, "'to'"),
        ("/v2/aggs/ticker/C:EURUSD/range/1/minute/2024-03-05/2024-03-04", 400, "before 'from'"),
        ("/v2/aggs/ticker/C:EURUSD/range/1/second/2024-03-04/2024-03-05", 400, "one-minute bars are the finest"),
        ("/v2/aggs/ticker/C:EURUSD/range/1/fortnight/2024-03-04/2024-03-05", 400, "'timespan'"),
        ("/v2/aggs/ticker/C:EURUSD/range/0/minute/2024-03-04/2024-03-05", 400, "'multiplier'"),
        ("/v2/aggs/ticker/C:EURUSD/range/-1/day/2024-03-04/2024-03-05", 400, "'multiplier'"),
        ("/v2/aggs/ticker/C:EURUSD/range/50001/minute/2024-03-04/2024-03-05", 400, "'multiplier' is too large"),
        ("/v2/aggs/ticker/C:EURUSD/range/834/hour/2024-03-04/2024-03-05", 400, "'multiplier' is too large"),
        (f"/v2/aggs/ticker/C:EURUSD/range/{10**40}/year/2024-03-04/2024-03-05", 400, "'multiplier' is too large"),
        (f"/v2/aggs/ticker/{GOOD}?limit=0", 400, "'limit'"),
        (f"/v2/aggs/ticker/{GOOD}?limit=50001", 400, "'limit'"),
        (f"/v2/aggs/ticker/{GOOD}?limit=many", 400, "'limit'"),
        (f"/v2/aggs/ticker/{GOOD}?sort=up", 400, "'sort'"),
        (f"/v2/aggs/ticker/{GOOD}?adjusted=perhaps", 400, "'adjusted'"),
        (f"/v2/aggs/ticker/{GOOD}?cursor=", 400, "'cursor'"),
        (f"/v2/aggs/ticker/{GOOD}?cursor=AAAA", 400, "'cursor'"),
        (f"/v2/aggs/ticker/{GOOD}?cursor=%C3%A9", 400, "'cursor'"),
        (f"/v2/aggs/ticker/{GOOD}?cursor={cursors.sealed({'limit': 0})}", 400, "'limit'"),
        ("/v2/aggs/ticker/C:EURUSD/prev?adjusted=1", 400, "'adjusted'"),
        ("/v2/aggs/grouped/locale/us/market/stocks/today", 400, "'date'"),
        ("/v2/aggs/grouped/locale/us/market/stocks/20240304", 400, "'date'"),
        ("/v2/aggs/grouped/locale/us/market/stocks/1969-12-31", 400, "'date'"),
        ("/v2/aggs/grouped/locale/us/market/stocks/2024-03-04?adjusted=no", 400, "'adjusted'"),
        ("/v2/aggs/grouped/locale/us/market/fx/2024-03-04", 404, "not found"),
        ("/v2/aggs/grouped/locale/us/market/options/2024-03-04", 404, "not found"),
        ("/v3/reference/tickers?limit=1001", 400, "'limit'"),
        ("/v3/reference/tickers?sort=cik", 400, "'sort'"),
        ("/v3/reference/tickers?order=up", 400, "'order'"),
        ("/v3/reference/tickers?market=futures", 400, "'market'"),
        ("/v3/reference/tickers?locale=eu", 400, "'locale'"),
        ("/v3/reference/tickers?active=1", 400, "'active'"),
        ("/v3/reference/tickers?exchange=XNYS", 400, "'exchange'"),
        ("/v3/reference/tickers?search=%00", 400, "'search'"),
        ("/v3/reference/tickers?cursor=AAAA", 400, "'cursor'"),
        ("/v3/reference/tickers/C:NOSUCH", 404, "Ticker not found"),
        ("/v3/reference/tickers/%00", 404, "Ticker not found"),
        ("/v1/open-close/AAPL/2024-03-04", 404, "not found"),
        ("/v1", 404, "not found"),
        ("/v2/nothing", 404, "not found"),
        ("/v3/trades/AAPL", 404, "not found"),
        ("/vX/reference/financials", 404, "not found"),
    ],
)
def test_refusals_have_the_provider_s_shape(served: Served, path: str, status: int, names: str) -> None:
    """Status, an id, and one sentence that names what is wrong; the same text as the replay's where it has the call."""
    found, headers, body = get(served.url + path)
    key = "message" if status == 404 else "error"
    assert (found, headers["content-type"]) == (status, "application/json")
    assert list(body) == ["status", "request_id", key]
    assert (body["status"], len(body["request_id"])) == ("NOT_FOUND" if status == 404 else "ERROR", 32)
    assert names in body[key]
    if "/range/" in path and "too large" not in names:
        assert get(served.replay.url + path, {"Authorization": "Bearer key"})[2][key] == body[key]


@pytest.mark.parametrize("path", [f"/v2/aggs/ticker/{GOOD}", "/v3/reference/tickers", "/v2/aggs/ticker/AAPL/prev"])
def test_other_methods_are_refused_in_the_provider_s_shape(served: Served, path: str) -> None:
    status, headers, body = get(served.url + path, method="POST")
    assert (status, list(body), body["status"]) == (405, ["status", "request_id", "error"], "ERROR")
    assert "GET" in headers["allow"]


def test_a_cursor_that_somebody_has_changed_is_refused(served: Served) -> None:
    """Every single character counts."""
    for url in (aggs(served.url, "C:EURUSD", "1/minute", "2024-03-04", "2024-03-06", limit=10),
                f"{served.url}/v3/reference/tickers?limit=1"):  # fmt: skip
        link = get(url)[2]["next_url"]
        assert get(link)[0] == 200
        head, _, cursor = link.partition("?cursor=")
        for place in range(len(cursor)):
            other = cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :]
            status, _, body = get(f"{head}?cursor={other}")
            # The last character of Base64 may hold bits that stand for nothing.
            assert status == 400 or place == len(cursor) - 1
            assert status == 200 or "'cursor'" in body["error"]


def test_any_ticker_is_answered(served: Served) -> None:
    """However strange, it is unknown, and none of them breaks anything."""
    for ticker in ("%00", "%F0%9F%95%AF", "c:eurusd", "O:AAPL240621C00150000", "'", "A" * 3000, "%22results%22:[]"):
        status, _, body = get(aggs(served.url, ticker, "1/day", "2024-03-04", "2024-03-05"))
        assert (status, body["resultsCount"], body["status"]) == (200, 0, "OK")
        assert get(f"{served.url}/v2/aggs/ticker/{ticker}/prev")[2]["resultsCount"] == 0


def test_a_database_that_is_away_is_told_in_the_provider_s_shape(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(db)

    def down() -> None:
        raise DatabaseError("the database did not answer within 10 s")

    with TestClient(app, raise_server_exceptions=False) as one:
        monkeypatch.setattr(app.state.serving.db, "connection", down)
        for path in (f"/v2/aggs/ticker/{GOOD}", "/v2/aggs/ticker/AAPL/prev", "/v3/reference/tickers",
                     "/v2/aggs/grouped/locale/us/market/stocks/2024-03-04", "/v3/reference/tickers/AAPL"):  # fmt: skip
            answer = one.get(path)
            assert (answer.status_code, list(answer.json())) == (503, ["status", "request_id", "error"])


def test_no_key_is_ever_logged(db: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither from the URL nor from the header: whatever is answered, and whatever fails."""
    caplog.set_level(logging.DEBUG)
    app = app_of(db)

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("unforeseen")

    def down() -> None:
        raise psycopg.OperationalError("gone")

    with serving(app) as url:
        paths = (f"/v2/aggs/ticker/{GOOD}", "/v2/aggs/ticker/AAPL/prev", "/v3/reference/tickers", "/v1/no")
        statuses = []
        for limit, fault in enumerate((None, broken, down), 7):
            if fault is broken:
                monkeypatch.setattr(base_pages, "page", broken)
            elif fault is down:
                monkeypatch.setattr(app.state.serving.db, "connection", down)
            for path in paths:
                asked = get(f"{url}{path}?apiKey={SECRET}&limit={limit}", {"Authorization": f"Bearer {SECRET}"})
                statuses.append(asked[0])
                assert SECRET not in json.dumps(asked[1:])
    assert statuses == [200, 200, 200, 404, 500, 200, 200, 404, 503, 503, 503, 404]
    assert "unforeseen failure of GET /v2/aggs/ticker/" in caplog.text
    assert SECRET not in caplog.text


# Bars that are no longer kept


@pytest.mark.parametrize("engine", [pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
async def test_coarser_bars_outlive_their_minutes(database: str, engine: str) -> None:
    """Below the retention of one-minute bars a page counts the candles that are left; no bar is lost or repeated."""
    start, floor, end = at("2024-03-28 00:00"), at("2024-03-31 00:00"), at("2024-04-02 00:00")
    db = checked(database, engine)
    async with db, db.connection() as conn:
        await put(conn, db.engine, "BTCUSD", start, end, now=NOW, bars=invent(minutes(start, end)))
        await db.engine.refresh(conn, {}, NOW)
        await conn.execute("DELETE FROM market_data.candles_1m WHERE ts < %s", (floor,))
    with serving(app_of(db, RETENTION_1M="4 days")) as url:
        whole = results(pages(aggs(url, "X:BTCUSD", "1/hour", "2024-03-27", "2024-04-02", limit=50_000)))
        assert [bar["t"] for bar in whole] == [to_ms(start) + place * HOUR for place in range(5 * 24)]
        for sort in ("asc", "desc"):
            cut = pages(aggs(url, "X:BTCUSD", "1/hour", "2024-03-27", "2024-04-02", limit=100, sort=sort))
            assert results(cut) == (whole if sort == "asc" else whole[::-1])
            counts = [body["queryCount"] for body in cut]
            assert sum(counts) == 3 * 24 + 2 * 1440
            assert set(counts) <= {60, 72, 72 - 40, 100}
        minutes_left = results(pages(aggs(url, "X:BTCUSD", "1/minute", "2024-03-27", "2024-04-02")))
        assert len(minutes_left) == 2 * 1440
