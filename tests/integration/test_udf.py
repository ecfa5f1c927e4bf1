"""The datafeed of TradingView's charting library: asked as the library asks, over days whose hours are known."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient
from psycopg import sql

from service.api import udf_history
from service.api.app import create_app
from service.api.udf_symbols import decimals
from service.bars import Bars, to_ms
from service.catalogue import Listed
from service.db.connect import Database
from service.db.migrate import migrate
from service.db.preflight import checked
from service.instruments import AssetType
from service.market_hours import Market, open_ranges
from tests.integration.marketdata import at, invent, minutes, only_active, put
from tests.integration.test_api import block, chosen

NOW = at("2024-03-14 12:07:30")
FIRST, LAST = at("2024-03-05 00:00"), at("2024-03-14 12:07")
"""New York's clocks go forward on Sunday 2024-03-10."""
FRIDAY_CLOSE, SUNDAY_OPEN = at("2024-03-08 22:00"), at("2024-03-10 21:00")
DAYS = {"EURUSD": "forex", "XAUUSD": "forex", "SPX500": "us_index", "DAX40": "german_index", "BTCUSD": "crypto"}
COINS = ("ADA", "AVAX", "BCH", "BTC", "DOGE", "DOT", "ETH", "LINK", "LTC", "SOL", "XRP")
HISTORY = "/udf/history"


def bars_of(symbol: str) -> Bars:
    """A bar for every minute that the market is open."""
    market: Market = DAYS[symbol]  # type: ignore[assignment]
    times = [minute for part in open_ranges(market, FIRST, LAST) for minute in minutes(*part)]
    return invent(times, volume=symbol not in {"SPX500", "DAX40"})


async def fill(db: Database) -> None:
    """Every market's open minutes; what came before `FIRST` of EURUSD was never asked for, of GBPUSD nothing came."""
    async with db, db.connection() as conn:
        await only_active(conn, *DAYS)
        for symbol in DAYS:
            await put(conn, db.engine, symbol, FIRST, LAST, now=NOW, bars=bars_of(symbol))
        await db.engine.refresh(conn, {}, NOW)


@contextmanager
def charted(server: Any) -> Iterator[Database]:  # noqa: ANN401 - the class is the conftest's own
    """A filled database of its own."""
    name = f"candlewick_{os.getpid()}_charted"
    server.admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    try:
        migrate(server.url(name), server.engine)
        asyncio.run(fill(checked(server.url(name), server.engine)))
        yield checked(server.url(name), server.engine)
    finally:
        server.admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def app_of(db: Database, now: Callable[[], datetime] = lambda: NOW, **changes: str) -> Any:  # noqa: ANN401 - Litestar
    return create_app(checked(db.url, db.engine.name), chosen(db, **changes), now)


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def readable(request: pytest.FixtureRequest) -> Iterator[Database]:
    with charted(request.getfixturevalue(f"{request.param}_server")) as db:
        yield db


@pytest.fixture(scope="module")
def client(readable: Database) -> Iterator[TestClient[Any]]:
    with TestClient(app_of(readable), raise_server_exceptions=False) as one:
        yield one


def seconds(text: str | datetime) -> int:
    return to_ms(at(text) if isinstance(text, str) else text) // 1000


def history(client: TestClient[Any], symbol: str, resolution: str, **asked: str | int | datetime) -> Any:  # noqa: ANN401 - JSON
    """The body; `since` is `from`."""
    named = {{"since": "from"}.get(name, name): value for name, value in asked.items()}
    given = {name: str(value if isinstance(value, int) else seconds(value)) for name, value in named.items()}
    answer = client.get(HISTORY, params={"symbol": symbol, "resolution": resolution} | given)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: Any, status: int) -> str:  # noqa: ANN401 - httpx's
    """The words of a refusal in the protocol's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert set(answer.json()) == {"s", "errmsg"}
    assert answer.json()["s"] == "error"
    text: str = answer.json()["errmsg"]
    return text


def candle(symbol: str, start: datetime, end: datetime) -> tuple[float, float, float, float]:
    """Open, high, low and close of the bars of a range."""
    bars = bars_of(symbol)
    inside = bars.take((bars.ts >= to_ms(start)) & (bars.ts < to_ms(end)))
    return float(inside.open[0]), float(inside.high.max()), float(inside.low.min()), float(inside.close[-1])


def shown(body: Any, place: int) -> tuple[float, float, float, float]:  # noqa: ANN401 - JSON
    return body["o"][place], body["h"][place], body["l"][place], body["c"][place]


# What the datafeed is


def test_the_chart_learns_what_it_may_ask(client: TestClient[Any]) -> None:
    """Search and single symbols, since the library uses either these or groups."""
    config = client.get("/udf/config").json()
    assert config["supported_resolutions"] == ["1", "5", "15", "30", "60", "120", "240", "1D", "1W", "1M"]
    flags = {
        name: config[f"supports_{name}"] for name in ("search", "group_request", "marks", "timescale_marks", "time")
    }
    assert flags == {"search": True, "group_request": False, "marks": False, "timescale_marks": False, "time": True}
    assert [one["value"] for one in config["exchanges"]] == ["", "FOREX", "CRYPTO", "US", "XETRA"]
    assert [one["value"] for one in config["symbols_types"]] == ["", "forex", "commodity", "index", "crypto", "stock"]


def test_the_time_is_plain_text_in_seconds(client: TestClient[Any]) -> None:
    answer = client.get("/udf/time")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == str(seconds(NOW))


# Instruments


@pytest.mark.parametrize("spelling", ["EURUSD", "eurusd", "FOREX:EURUSD", "C:EURUSD", "c:eurusd"])
def test_a_symbol_has_several_spellings(client: TestClient[Any], spelling: str) -> None:
    body = client.get("/udf/symbols", params={"symbol": spelling}).json()
    assert body == {
        "name": "EURUSD",
        "ticker": "EURUSD",
        "full_name": "FOREX:EURUSD",
        "description": "Euro / US Dollar",
        "type": "forex",
        "session": "1700-1700",
        "timezone": "America/New_York",
        "exchange": "FOREX",
        "listed_exchange": "FOREX",
        "minmov": 1,
        "pricescale": 100_000,
        "format": "price",
        "has_intraday": True,
        "intraday_multipliers": ["1", "5", "15", "30", "60"],
        "has_daily": True,
        "has_weekly_and_monthly": True,
        "supported_resolutions": ["1", "5", "15", "30", "60", "120", "240", "1D", "1W", "1M"],
        "visible_plots_set": "ohlcv",
        "volume_precision": 0,
        "data_status": "delayed_streaming",
    }
    answers = {client.get(HISTORY, params=asked(symbol=one)).text for one in (spelling, "EURUSD")}
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("USDJPY", {"pricescale": 1000, "session": "1700-1700", "visible_plots_set": "ohlcv"}),
        ("XAUUSD", {"pricescale": 1000, "session": "1700-1700", "type": "commodity", "exchange": "FOREX"}),
        ("BTCUSD", {"pricescale": 100_000, "session": "24x7", "timezone": "Etc/UTC", "volume_precision": 4}),
        ("SPX500", {"pricescale": 100, "session": "0930-1600", "timezone": "America/New_York", "exchange": "US"}),
        ("DAX40", {"pricescale": 100, "session": "0900-1730", "timezone": "Europe/Berlin", "exchange": "XETRA"}),
        ("SPX500", {"visible_plots_set": "ohlc", "intraday_multipliers": ["1", "5", "15", "30"]}),
        ("BTCUSD", {"intraday_multipliers": ["1", "5", "15", "30", "60", "120", "240"]}),
    ],
)
def test_each_market_has_its_hours_and_decimals(
    client: TestClient[Any], symbol: str, expected: dict[str, object]
) -> None:
    """Bars of which one would straddle a session's start are left to the chart: it makes them from shorter ones."""
    body = client.get("/udf/symbols", params={"symbol": symbol}).json()
    assert {name: body[name] for name in expected} == expected


def test_holidays_and_early_closes_reach_from_the_first_bar_to_the_next_year(client: TestClient[Any]) -> None:
    body = client.get("/udf/symbols", params={"symbol": "SPX500"}).json()
    dates = body["session_holidays"].split(",")
    assert (dates[0], dates[-1]) == ("20240101", "20251225")
    assert "20240329" in dates
    assert body["corrections"].startswith("0930-1300:20240703,20241129,20241224,2025")
    assert "corrections" not in client.get("/udf/symbols", params={"symbol": "EURUSD"}).json()


@pytest.mark.parametrize(
    ("asset_type", "ticker", "price", "expected"),
    [
        ("forex", "C:EURUSD", 1.0845, 5),
        ("forex", "C:USDJPY", 151.2, 3),
        ("forex", "C:EURUSD", None, 5),
        ("commodity", "C:XAUUSD", 2034.125, 3),
        ("index", "I:SPX", 5123.41, 2),
        ("stock", "AAPL", 189.5, 2),
        ("stock", "PENNY", 0.1234, 4),
        ("crypto", "X:BTCUSD", 65_000.12, 2),
        ("crypto", "X:SOLUSD", 142.871, 3),
        ("crypto", "X:XRPUSD", 0.52341, 6),
        ("crypto", "X:SHIBUSD", 0.00002713, 10),
        ("crypto", "X:BTCUSD", None, 2),
        ("crypto", "X:DUSTUSD", 1e-30, 12),
    ],
)
def test_the_last_close_keeps_its_meaning(
    asset_type: AssetType, ticker: str, price: float | None, expected: int
) -> None:
    """Crypto currencies are of any size: six digits are shown."""
    one = Listed(symbol="X", ticker=ticker, name="", asset_type=asset_type, active=True, first_bar=None, last_bar=None)
    assert decimals(one, price) == expected


@pytest.mark.parametrize(
    ("symbol", "named"),
    [("EURUSX", "EURUSD"), ("NYSE:EURUSD", "FOREX:EURUSD"), ("FOREX:EURUSX", "EURUSD"), ("X:EURUSD", "FOREX:EURUSD")],
)
def test_an_unknown_symbol_is_told_the_nearest(client: TestClient[Any], symbol: str, named: str) -> None:
    """Another exchange's is unknown too: its prices would be others."""
    for answer in (
        client.get("/udf/symbols", params={"symbol": symbol}),
        client.get(HISTORY, params=asked(symbol=symbol)),
    ):
        assert named in refused(answer, 404)


@pytest.mark.parametrize("symbol", ["é", "A B", "A" * 65, ":", "EURUSD:", "\x00", "%"])
def test_what_can_be_no_symbol_is_unknown(client: TestClient[Any], symbol: str) -> None:
    refused(client.get("/udf/symbols", params={"symbol": symbol}), 404)


@pytest.mark.parametrize(
    ("asked_for", "expected"),
    [
        ({"query": "EURUSD"}, ["EURUSD"]),
        ({"query": "EUR/USD", "limit": "1"}, ["EURUSD"]),
        ({"query": "FOREX:EURUSD"}, ["EURUSD"]),
        ({"query": "C:EURUSD"}, ["EURUSD"]),
        ({"query": "USD", "limit": "2"}, ["USDCAD", "USDCHF"]),
        ({"query": "GOLD"}, ["XAUUSD"]),
        ({"query": "", "type": "commodity", "exchange": ""}, ["XAGUSD", "XAUUSD"]),
        ({"type": "index", "exchange": "XETRA"}, ["DAX40"]),
        ({"query": "nothing like it"}, []),
        ({"query": "%"}, []),
        (
            {"query": "/", "exchange": "crypto"},
            [f"{coin}USD" for coin in COINS],
        ),
    ],
)
def test_a_search_finds_symbols_tickers_and_names(
    client: TestClient[Any], asked_for: dict[str, str], expected: list[str]
) -> None:
    """The likeliest first."""
    found = client.get("/udf/search", params=asked_for).json()
    assert [one["symbol"] for one in found] == expected
    assert all(set(one) == {"symbol", "full_name", "description", "exchange", "ticker", "type"} for one in found)


@pytest.mark.parametrize(
    "asked_for", [{"type": "bond"}, {"exchange": "NYSE"}, {"limit": "0"}, {"limit": "x"}, {"q": "E"}]
)
def test_a_search_that_cannot_be_says_what_can(client: TestClient[Any], asked_for: dict[str, str]) -> None:
    assert refused(client.get("/udf/search", params=asked_for), 400)


@pytest.mark.parametrize("group", ["forex", "commodity", "INDEX", "crypto", "stock"])
def test_a_group_says_of_each_what_is_said_of_it_alone(client: TestClient[Any], group: str) -> None:
    table = client.get("/udf/symbol_info", params={"group": group}).json()
    assert {len(column) for column in table.values()} == {len(table["symbol"])}
    names = {
        "name": "symbol",
        "exchange": "exchange-traded",
        "listed_exchange": "exchange-listed",
        "minmov": "minmovement",
        "session": "session-regular",
    }
    for place, symbol in enumerate(table["symbol"][:3]):
        alone = client.get("/udf/symbols", params={"symbol": symbol}).json()
        for name in set(alone) - {"full_name", "format", "data_status"}:
            column = names.get(name, name.replace("_", "-"))
            assert table[column][place] == alone[name], name


def test_an_unknown_group_is_told_which_there_are(client: TestClient[Any]) -> None:
    assert "commodity" in refused(client.get("/udf/symbol_info", params={"group": "NYSE"}), 404)
    assert "commodity" in refused(client.get("/udf/symbol_info"), 400)


# History


def asked(**changes: str | int) -> dict[str, str | int]:
    """A question that is answered, changed."""
    base: dict[str, str | int] = {"symbol": "EURUSD", "resolution": "60", "from": 1709802000, "to": 1709816400}
    return {name: value for name, value in (base | changes).items() if value != "without"}


@pytest.mark.parametrize(
    ("resolution", "timeframe"), [("1", "1m"), ("7", "7m"), ("60", "1h"), ("90", "90m"), ("240", "4h")]
)
def test_history_is_the_same_candles_in_seconds(client: TestClient[Any], resolution: str, timeframe: str) -> None:
    """From inclusive, to exclusive."""
    start, end = at("2024-03-07 06:00"), at("2024-03-07 18:00")
    body = history(client, "EURUSD", resolution, since=start, to=end)
    answer = client.get(
        "/api/candles/EURUSD",
        params={"timeframe": timeframe, "from": to_ms(start), "to": to_ms(end), "limit": 2000},
    )
    expected = answer.json()["candles"]
    assert list(body) == ["s", "t", "o", "h", "l", "c", "v"]
    assert body["s"] == "ok"
    assert body["t"] == [one["t"] // 1000 for one in expected]
    for name in "ohlcv":
        assert body[name] == [one[name] for one in expected]


def test_an_index_has_no_volume_rather_than_one_of_nought(client: TestClient[Any]) -> None:
    body = history(client, "SPX500", "30", since="2024-03-07", to="2024-03-08")
    assert list(body) == ["s", "t", "o", "h", "l", "c"]
    assert body["t"][0] == seconds("2024-03-07 14:30")


def test_a_forex_day_ends_at_17_in_new_york_in_winter_and_summer(client: TestClient[Any]) -> None:
    """Its time is 00:00 UTC of its date, as the library wants it; there is none of Saturday and Sunday."""
    for symbol in ("EURUSD", "XAUUSD"):
        body = history(client, symbol, "1D", since="2024-03-07", to="2024-03-14")
        days = ["2024-03-07", "2024-03-08", "2024-03-11", "2024-03-12", "2024-03-13"]
        assert body["t"] == [seconds(day) for day in days]
        assert shown(body, 1) == candle(symbol, at("2024-03-07 22:00"), FRIDAY_CLOSE)
        assert shown(body, 2) == candle(symbol, SUNDAY_OPEN, at("2024-03-11 21:00"))


def test_a_day_of_an_exchange_is_its_own_date(client: TestClient[Any]) -> None:
    body = history(client, "SPX500", "D", since="2024-03-08", to="2024-03-12")
    assert body["t"] == [seconds("2024-03-08"), seconds("2024-03-11")]
    assert shown(body, 0) == candle("SPX500", at("2024-03-08 14:30"), at("2024-03-08 21:00"))
    assert shown(body, 1) == candle("SPX500", at("2024-03-11 13:30"), at("2024-03-11 20:00"))
    body = history(client, "BTCUSD", "1D", since="2024-03-09", to="2024-03-10")
    assert body["t"] == [seconds("2024-03-09")]
    assert shown(body, 0) == candle("BTCUSD", at("2024-03-09 00:00"), at("2024-03-10 00:00"))


def test_weeks_are_named_by_their_monday_and_months_by_their_first(client: TestClient[Any]) -> None:
    """A week of forex begins on the Sunday before."""
    weeks = history(client, "EURUSD", "1W", since="2024-03-01", to=NOW)
    assert weeks["t"] == [seconds("2024-03-04"), seconds("2024-03-11")]
    assert shown(weeks, 1) == candle("EURUSD", SUNDAY_OPEN, LAST)
    for resolution in ("1M", "M"):
        assert history(client, "EURUSD", resolution, since=0, to=NOW)["t"] == [seconds("2024-03-01")]
    assert history(client, "EURUSD", "12M", since=0, to=NOW)["t"] == [seconds("2024-01-01")]
    assert history(client, "BTCUSD", "2W", since=0, to=NOW)["s"] == "ok"
    assert history(client, "DAX40", "3D", since=0, to=NOW)["s"] == "ok"


@pytest.mark.parametrize(
    ("resolution", "latest"), [("1", "2024-03-08 21:59"), ("60", "2024-03-08 21:00"), ("1D", "2024-03-08 00:00")]
)
def test_a_weekend_has_no_data_and_names_the_candle_before_it(
    client: TestClient[Any], resolution: str, latest: str
) -> None:
    """In the times that it would have in an answer."""
    body = history(client, "EURUSD", resolution, since="2024-03-09", to="2024-03-10 12:00")
    assert body == {"s": "no_data", "nextTime": seconds(latest)}


@pytest.mark.parametrize("resolution", ["1", "240", "1D", "1W", "1M"])
def test_before_everything_there_is_no_data_and_nothing_to_go_on_to(client: TestClient[Any], resolution: str) -> None:
    """Years before 1970 are asked for too, by a chart that is scrolled back."""
    for since, to in ((0, 86400), (-5_000_000_000, -86400), (-86400, 951_782_400)):
        assert history(client, "EURUSD", resolution, since=since, to=to) == {"s": "no_data"}
    assert history(client, "EURUSD", resolution, to=951_782_400, countback=300) == {"s": "no_data"}
    assert history(client, "GBPUSD", resolution, since=0, to=NOW) == {"s": "no_data"}


@pytest.mark.parametrize("since", [{}, {"since": SUNDAY_OPEN}, {"since": FIRST}, {"since": "2024-04-01"}])
def test_the_count_wins_over_from_and_reaches_back_over_a_weekend(
    client: TestClient[Any], since: dict[str, Any]
) -> None:
    to = SUNDAY_OPEN + timedelta(minutes=10)
    body = history(client, "EURUSD", "1", to=to, countback=25, **since)
    monday, friday = minutes(SUNDAY_OPEN, to), minutes(FRIDAY_CLOSE - timedelta(minutes=15), FRIDAY_CLOSE)
    assert body["t"] == [seconds(minute) for minute in friday + monday]
    days = history(client, "EURUSD", "1D", to="2024-03-12", countback=2, **since)
    assert days["t"] == [seconds("2024-03-08"), seconds("2024-03-11")]


def test_the_running_candle_is_there(client: TestClient[Any]) -> None:
    """So a chart that asks again every few seconds moves."""
    body = history(client, "EURUSD", "60", to=NOW + timedelta(hours=1), countback=2, since=NOW)
    assert body["t"] == [seconds("2024-03-14 11:00"), seconds("2024-03-14 12:00")]
    assert shown(body, 1) == candle("EURUSD", at("2024-03-14 12:00"), LAST)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *((name, f"{name} is missing") for name in ("symbol", "resolution", "to", "from")),
        *(
            ({"resolution": text}, "1 5 15 30 60 120 240 1D 1W 1M")
            for text in ("0", "1h", "S", "1S", "d", "-5", "0D", "1.5")
        ),
        *(
            ({"resolution": text}, "1 5 15 30 60 120 240 1D 1W 1M")
            for text in ("99999M", "999999", "1D1D", "\u0665", "\x00")
        ),
        *(
            ({name: text}, "Unix seconds")
            for name in ("from", "to")
            for text in ("1709802000000", "2024-03-07", "1e9", "1.5")
        ),
        ({"from": 1709816400}, "must lie before"),
        ({"from": "x", "countback": 5}, "Unix seconds"),
        *(({"countback": text}, "1 to 50000") for text in (0, -1, 50001, "x", "1.0", "9" * 30)),
        ({"countbak": 5}, "countback"),
        ({"to": "9" * 5000}, "Unix seconds"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_can(
    client: TestClient[Any], changes: dict[str, str | int] | str, named: str
) -> None:
    wrong = {changes: "without"} if isinstance(changes, str) else changes
    assert named in refused(client.get(HISTORY, params=asked(**wrong)), 400)


def test_a_parameter_given_twice_is_refused(client: TestClient[Any]) -> None:
    assert "2 times" in refused(client.get(f"{HISTORY}?symbol=EURUSD&symbol=GBPUSD&resolution=1&from=1&to=2"), 400)


def test_a_longer_range_than_a_page_is_its_latest_part_and_names_the_rest(
    client: TestClient[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what the library's own datafeed goes on from, with `latestFirst`."""
    whole = history(client, "BTCUSD", "60", since=FIRST, to=LAST)
    monkeypatch.setattr(udf_history, "PAGE", 100)
    found: list[int] = []
    link = f"{HISTORY}?symbol=BTCUSD&resolution=60&from={seconds(FIRST)}&to={seconds(LAST)}"
    while link:
        answer = client.get(link)
        assert len(answer.json()["t"]) <= 100
        found = answer.json()["t"] + found
        link = answer.links.get("next", {}).get("url", "")
    assert found == whole["t"]


# Whether it is complete, and whether it may be kept


def test_an_answer_says_whether_it_is_complete(client: TestClient[Any]) -> None:
    answer = client.get(HISTORY, params=asked())
    assert answer.headers["X-Complete"] == "true"
    assert "X-Missing" not in answer.headers
    answer = client.get(HISTORY, params=asked(**{"from": seconds("2024-03-04"), "to": seconds("2024-03-06")}))
    assert answer.headers["X-Complete"] == "false"
    gap = {"from": to_ms(at("2024-03-04")), "to": to_ms(FIRST), "reason": "never requested"}
    assert msgspec.json.decode(answer.headers["X-Missing"]) == [gap]


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"from": "without", "countback": 20}, True),
        ({"resolution": "1D", "from": seconds("2024-03-07"), "to": seconds("2024-03-12")}, True),
        ({"from": seconds("2024-03-09"), "to": seconds("2024-03-10")}, True),
        ({"to": seconds(NOW)}, False),
        ({"resolution": "1D", "to": seconds("2024-03-15")}, False),
        ({"from": "without", "countback": 300}, False),
        ({"from": seconds("2024-03-01")}, False),
        ({"from": 0, "to": 86400}, False),
        ({"symbol": "GBPUSD"}, False),
    ],
)
def test_a_closed_range_is_kept_and_the_running_candle_never(
    client: TestClient[Any], changes: dict[str, str | int], *, kept: bool
) -> None:
    """Nor what older bars would be added to: a count that was not reached, a range that was never asked for."""
    first = client.get(HISTORY, params=asked(**changes))
    assert first.status_code == 200
    assert first.headers["Cache-Control"] == ("public, no-cache" if kept else "no-store")
    assert ("ETag" in first.headers) == kept
    if kept:
        again = client.get(HISTORY, params=asked(**changes), headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == first.headers["ETag"]
    assert client.get(HISTORY, params=asked(**changes)).json() == first.json()


def test_a_correction_is_seen_at_once_by_all_that_it_touches(database: str, engine: str) -> None:
    """Also by the weekend's answer, which names the candle before it."""
    db = checked(database, engine)

    async def write(bars: Bars) -> None:
        async with checked(database, engine) as own, own.connection() as conn:
            await put(conn, own.engine, "EURUSD", FIRST, FRIDAY_CLOSE + timedelta(days=1), now=NOW, bars=bars)
            await own.engine.refresh(conn, {}, NOW)

    minute, weekend = asked(resolution="1"), asked(**{"from": seconds(FRIDAY_CLOSE), "to": seconds("2024-03-09 12:00")})
    original = bars_of("EURUSD")
    before = original.take(original.ts < to_ms(FRIDAY_CLOSE))
    asyncio.run(write(before))
    with TestClient(app_of(db)) as one:
        known = {}
        for _ in range(2):  # the second time from memory
            for question in (minute, weekend):
                answer = one.get(HISTORY, params=question)
                known[str(question)] = answer
                assert "ETag" in answer.headers
        raised = np.where(before.ts == to_ms(FRIDAY_CLOSE) - 60_000, 1.5, before.high)
        asyncio.run(write(msgspec.structs.replace(before, high=raised)))
        assert one.get(HISTORY, params=minute, headers=tag(known[str(minute)])).status_code == 304
        assert one.get(HISTORY, params=weekend, headers=tag(known[str(weekend)])).status_code == 200
        longer = asked(resolution="1", **{"from": seconds(FRIDAY_CLOSE) - 120, "to": seconds(FRIDAY_CLOSE)})
        assert one.get(HISTORY, params=longer).json()["h"][-1] == 1.5


def tag(answer: Any) -> dict[str, str]:  # noqa: ANN401 - httpx's
    return {"If-None-Match": answer.headers["ETag"]}


@pytest.mark.parametrize("coding", ["gzip", "identity"])
def test_an_answer_may_be_compressed(client: TestClient[Any], coding: str) -> None:
    answer = client.get(HISTORY, params=asked(resolution="1"), headers={"Accept-Encoding": coding})
    assert answer.headers.get("content-encoding", "identity") == coding
    assert len(answer.json()["t"]) == 240


# The way of a chart


@settings(max_examples=30)
@given(
    symbol=st.sampled_from(sorted(DAYS)),
    resolution=st.sampled_from(["1", "5", "30", "45", "60", "240", "1D", "2D", "1W", "1M"]),
    to=st.integers(seconds(FIRST), seconds(LAST) + 100_000),
    count=st.integers(1, 3000),
)
def test_paging_back_by_counts_gives_every_candle_once(
    client: TestClient[Any], symbol: str, resolution: str, to: int, count: int
) -> None:
    """From the right edge to the end of history, each question ending where the answer before began."""
    if resolution in {"1", "5"}:
        count += 200
    whole = history(client, symbol, resolution, since=0, to=to)
    found: dict[str, list[float]] = {name: [] for name in "tohlc"}
    edge = to
    while (body := history(client, symbol, resolution, to=edge, countback=count, since=edge - 1))["s"] == "ok":
        assert len(body["t"]) <= count
        assert body["t"] == sorted(set(body["t"]))
        assert body["t"][-1] < edge
        found = {name: body[name] + column for name, column in found.items()}
        edge = body["t"][0]
    assert body == {"s": "no_data"}
    assert found == {name: whole.get(name, []) for name in found}


@settings(max_examples=20)
@given(start=st.integers(seconds(FIRST) - 200_000, seconds(LAST)), length=st.integers(1, 400_000))
@pytest.mark.parametrize(
    ("symbol", "resolution"), [("EURUSD", "15"), ("SPX500", "30"), ("DAX40", "1D"), ("EURUSD", "1D")]
)
def test_a_range_holds_exactly_the_candles_whose_time_is_in_it(
    client: TestClient[Any], symbol: str, resolution: str, start: int, length: int
) -> None:
    """And where there are none, the next time is the latest before it."""
    times = history(client, symbol, resolution, since=0, to=NOW)["t"]
    body = history(client, symbol, resolution, since=start, to=start + length)
    inside = [one for one in times if start <= one < start + length]
    older = [one for one in times if one < start]
    if inside:
        assert body["t"] == inside
    else:
        assert body == {"s": "no_data"} | ({"nextTime": older[-1]} if older else {})


# Without a database, and from other origins


def test_while_the_database_is_down_the_protocols_shape_says_so(
    database: str, engine: str, request: pytest.FixtureRequest
) -> None:
    admin = request.getfixturevalue(f"{engine}_server").admin
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    db = checked(database, engine)
    db.pool.timeout = 0.2
    with TestClient(create_app(db, chosen(db), lambda: NOW), raise_server_exceptions=False) as one:
        block(admin, str(name), allow=False)
        try:
            assert one.get("/udf/config").status_code == 200
            assert one.get("/udf/time").status_code == 200
            for path in ("symbols?symbol=EURUSD", "search?query=E", "symbol_info?group=forex"):
                assert "try again" in refused(one.get(f"/udf/{path}"), 503)
            assert "try again" in refused(one.get(HISTORY, params=asked()), 503)
        finally:
            block(admin, str(name), allow=True)


@pytest.mark.parametrize("engine", ["plain"], indirect=True)
def test_pages_of_other_origins_read_only_where_they_are_named(database: str, engine: str) -> None:
    """Without the setting none does; with it refusals too can be read, and what an answer says of itself."""
    db, here, there = checked(database, engine), "https://charts.example", "https://elsewhere.example"
    allow, asks = "Access-Control-Allow-Origin", {"Access-Control-Request-Method": "GET"}
    with TestClient(app_of(db)) as one:
        assert allow not in one.get("/udf/config", headers={"Origin": here}).headers
    with TestClient(app_of(db, CORS_ORIGINS=f"{here}, http://localhost:3000/".removesuffix("/"))) as one:
        for path in ("/udf/config", "/udf/symbols?symbol=NOSUCH", "/api/candles/EURUSD"):
            answer = one.get(path, headers={"Origin": here})
            assert answer.headers[allow] == here
            assert {"Origin", "Accept-Encoding"} <= set(answer.headers["Vary"].split(", "))
            assert "X-Complete" in answer.headers["Access-Control-Expose-Headers"]
            assert allow not in one.get(path, headers={"Origin": there}).headers
        assert one.options("/udf/history", headers={"Origin": here} | asks).headers[allow] == here
        assert one.options("/udf/history", headers={"Origin": there} | asks).status_code == 400
        writes = {"Origin": here, "Access-Control-Request-Method": "POST"}
        assert one.options("/api/sync/sync-all", headers=writes).status_code == 400
    with TestClient(app_of(db, CORS_ORIGINS="*")) as one:
        assert one.get("/udf/config", headers={"Origin": there}).headers[allow] == "*"
