"""The API over HTTP: the form of its answers, what it refuses and how, and what it does without its database."""

import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import psycopg
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient
from psycopg import sql

from service import __version__
from service.api.app import SOURCE_HEADER, create_app
from service.api.asking import MOST
from service.api.problems import Problem
from service.api.rows import CandlesAnswer
from service.bars import to_ms
from service.db.connect import Database
from service.db.preflight import checked
from service.frames import PAGE
from service.settings import Settings, load
from service.timeframes import Timeframe
from tests.integration.marketdata import CORRECTED, LATELY, NOW, SOURCE, at, filled

NOON = at("2024-03-05 12:00")
HOUR = timedelta(hours=1)
CANDLES = "/api/candles/EURUSD"


def chosen(db: Database, **changes: str) -> Settings:
    return load({"DATABASE_URL": db.url, "ENGINE": db.engine.name} | changes, env_file=None)


def app_of(db: Database, **changes: str) -> Any:  # noqa: ANN401 - Litestar
    return create_app(checked(db.url, db.engine.name), chosen(db, **changes), lambda: NOW)


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def readable(request: pytest.FixtureRequest) -> Iterator[Database]:
    """The filled database, which no test here changes."""
    with filled(request.getfixturevalue(f"{request.param}_server")) as db:
        yield db


@pytest.fixture(scope="module")
def client(readable: Database) -> Iterator[TestClient[Any]]:
    with TestClient(app_of(readable), raise_server_exceptions=False) as one:
        yield one


def problem(answer: Any, status: int) -> Problem:  # noqa: ANN401 - httpx's, of whichever client
    """The body of a refusal: exactly the one shape that errors have, and with its source named like any answer."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert SOURCE_HEADER in answer.headers
    found = msgspec.json.decode(answer.content, type=Problem)
    assert set(answer.json()) == {"error", "message", "allowed"}
    assert found.message
    return found


# The form of an answer


def test_an_answer_has_the_documented_form(client: TestClient[Any]) -> None:
    """Nothing more and nothing less, instants in Unix ms."""
    answer = client.get(CANDLES, params={"timeframe": "1h", "from": "2024-03-04T10:00", "to": "2024-03-04T12:00"})
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["symbol", "timeframe", "from", "to", "complete", "settled_to", "missing", "candles", "next"]
    assert (body["symbol"], body["timeframe"]) == ("EURUSD", "1h")
    assert (body["from"], body["to"]) == (to_ms(at("2024-03-04 10:00")), to_ms(at("2024-03-04 12:00")))
    assert (body["complete"], body["settled_to"], body["missing"]) == (True, to_ms(at("2024-03-04 12:00")), [])
    assert body["next"] is None
    assert [list(candle) for candle in body["candles"]] == [["t", "o", "h", "l", "c", "v", "vw", "n"]] * 2
    assert [candle["t"] for candle in body["candles"]] == [body["from"], body["from"] + 3_600_000]
    assert all(candle["l"] <= min(candle["o"], candle["c"]) for candle in body["candles"])
    assert msgspec.json.decode(answer.content, type=CandlesAnswer).symbol == "EURUSD"


def test_a_candle_that_may_still_change_says_so(client: TestClient[Any]) -> None:
    candles = client.get(CANDLES, params={"timeframe": "5m", "from": "2024-03-05T11:45"}).json()["candles"]
    assert [candle.get("final") for candle in candles] == [None, False, False, False, False]


def test_what_a_source_does_not_have_is_null(client: TestClient[Any]) -> None:
    (candle,) = client.get("/api/candles/SPX500", params={"timeframe": "4h", "limit": "1"}).json()["candles"]
    assert (candle["v"], candle["vw"], candle["n"]) == (None, None, None)


def test_missing_ranges_come_with_their_reasons(client: TestClient[Any], readable: Database) -> None:
    body = client.get("/api/candles/GBPUSD", params={"from": "2024-02-28"}).json()
    assert body["missing"] == [
        {"from": to_ms(at("2024-02-28")), "to": to_ms(LATELY.start), "reason": "never requested"},
        {"from": to_ms(LATELY.start), "to": to_ms(at("2024-03-03")), "reason": "pending"},
    ]
    assert body["complete"] is False
    stale = client.get("/api/candles/XAUUSD", params={"timeframe": "1d", "from": "2024-03-03"}).json()
    expected = {"from": to_ms(CORRECTED.start), "to": to_ms(CORRECTED.end), "reason": "pending"}
    assert stale["missing"] == ([expected] if readable.engine.name == "timescaledb" else [])


def test_a_symbol_without_a_bar_says_that_it_has_no_data(client: TestClient[Any]) -> None:
    body = client.get("/api/candles/ETHUSD").json()
    assert body["no_data"] is True
    assert (body["complete"], body["settled_to"], body["candles"], body["next"]) == (False, None, [], None)


def test_below_the_floor_of_the_configured_retention_bars_are_expired(readable: Database) -> None:
    with TestClient(app_of(readable, RETENTION_1M="3 days")) as one:
        body = one.get(CANDLES, params={"from": "2024-03-01", "to": "2024-03-04"}).json()
    expected = [{"from": to_ms(LATELY.start), "to": to_ms(at("2024-03-03")), "reason": "expired"}]
    assert body["missing"] == (expected if readable.engine.name == "timescaledb" else [])


# What may be asked


@pytest.mark.parametrize("spelling", Timeframe.spellings())
def test_every_spelling_of_a_timeframe_is_answered_in_the_shortest(client: TestClient[Any], spelling: str) -> None:
    for text in (spelling, spelling.capitalize()):
        body = client.get(CANDLES, params={"timeframe": text, "limit": "1"}).json()
        assert body["timeframe"] == Timeframe.parse(spelling).value
    assert len(body["candles"]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "2024-03-04T10:00",
        "2024-03-04T10:00:00Z",
        "2024-03-04T11:00%2B01:00",
        "2024-03-04T11:00+01:00",
        "2024-03-04T05:00-05:00",
        "1709546400000",
    ],
)
def test_every_form_of_an_instant_means_the_same(client: TestClient[Any], text: str) -> None:
    """Also with a `+` that nobody escaped."""
    for other in ("from", "to"):
        query = f"from={text}&to=2024-03-04T11:00" if other == "from" else f"from=2024-03-04T09:00&to={text}"
        body = client.get(f"{CANDLES}?{query}").json()
        assert body[other] == to_ms(at("2024-03-04 10:00")), body


def test_a_date_is_its_midnight_in_utc(client: TestClient[Any]) -> None:
    body = client.get(CANDLES, params={"timeframe": "4h", "from": "2024-03-03", "to": "2024-03-04"}).json()
    assert [candle["t"] for candle in body["candles"]] == [to_ms(at("2024-03-03") + n * 4 * HOUR) for n in range(6)]


def test_without_parameters_the_latest_five_hundred_minutes_come(client: TestClient[Any]) -> None:
    body = client.get(CANDLES).json()
    assert len(body["candles"]) == 500
    assert body["timeframe"] == "1m"
    assert body["candles"][-1]["t"] == to_ms(LATELY.end - timedelta(minutes=1))
    assert (body["from"], body["to"]) == (body["candles"][0]["t"], to_ms(NOW))
    assert body["next"] is None


@pytest.mark.parametrize("symbol", ["eurusd", "EurUsd", "%45URUSD"])
def test_a_symbol_is_found_in_any_case(client: TestClient[Any], symbol: str) -> None:
    assert client.get(f"/api/candles/{symbol}?limit=1").json()["symbol"] == "EURUSD"


def test_the_most_that_may_be_asked_for_is_given(client: TestClient[Any]) -> None:
    body = client.get(CANDLES, params={"from": "2022-01-01", "limit": str(MOST)}).json()
    assert len(body["candles"]) == 2880 + (LATELY.end - LATELY.start) // timedelta(minutes=1)


# Page by page


def pages(client: TestClient[Any], asked: dict[str, str]) -> list[dict[str, Any]]:
    """The bodies of an answer's pages, as `next` leads from one to the other."""
    found = [client.get(CANDLES, params=asked).json()]
    while found[-1]["next"]:
        assert len(found) < 100, "this leads nowhere"
        found.append(client.get(found[-1]["next"]).json())
    return found


def test_next_is_the_path_and_query_of_the_next_page(client: TestClient[Any]) -> None:
    asked = {"timeframe": "60min", "from": "2024-03-04", "to": "2024-03-04T05:00", "limit": "2"}
    first = client.get(CANDLES, params=asked).json()
    parts = urlsplit(first["next"])
    assert (parts.scheme, parts.netloc, parts.path) == ("", "", CANDLES)
    second = client.get(first["next"]).json()
    assert second["candles"][0]["t"] == first["candles"][-1]["t"] + 3_600_000
    third = client.get(second["next"]).json()
    assert (len(third["candles"]), third["next"]) == (1, None)


def test_without_an_end_all_pages_end_where_the_first_one_did(readable: Database) -> None:
    """Bars that come meanwhile are another question's."""
    clock = iter([NOW, NOW + HOUR, NOW + 2 * HOUR, NOW + 3 * HOUR])
    app = create_app(checked(readable.url, readable.engine.name), chosen(readable), lambda: next(clock))
    with TestClient(app) as one:
        found = pages(one, {"timeframe": "1h", "from": "2024-03-05", "limit": "5"})
    assert [page["to"] for page in found] == [to_ms(NOW)] * 3


instants = st.datetimes(datetime(2024, 2, 29), datetime(2024, 3, 6))  # noqa: DTZ001 - naive means UTC


@settings(max_examples=12)
@given(
    st.tuples(instants, instants).filter(lambda pair: pair[0] != pair[1]),
    st.integers(7, 80),
    st.sampled_from(["15m", "1h", "4h", "1d"]),
    st.sampled_from(["asc", "desc"]),
    st.booleans(),
)
def test_following_next_brings_every_candle_exactly_once(  # noqa: PLR0917 - hypothesis passes them by place
    client: TestClient[Any],
    pair: tuple[datetime, datetime],
    limit: int,
    timeframe: str,
    order: str,
    ended: bool,  # noqa: FBT001
) -> None:
    """Whatever the range (to the microsecond), the limit and the order."""
    asked = {"timeframe": timeframe, "from": min(pair).isoformat(), "order": order}
    if ended or min(pair) >= NOW.replace(tzinfo=None):
        asked["to"] = max(pair).isoformat()
    whole = client.get(CANDLES, params=asked | {"limit": str(PAGE)}).json()
    assert whole["next"] is None
    some = pages(client, asked | {"limit": str(limit)})
    assert all(len(page["candles"]) == limit for page in some[:-1])
    found = [candle for page in some for candle in page["candles"]]
    assert found == whole["candles"]
    times = [candle["t"] for candle in found]
    assert times == sorted(times, reverse=order == "desc")


def test_the_latest_candles_can_be_followed_back_to_the_first_one(client: TestClient[Any]) -> None:
    found = pages(client, {"timeframe": "1d", "order": "desc", "limit": "3"})
    days = ["2024-03-05", "2024-03-04", "2024-03-03", "2024-03-02", "2024-03-01", "2022-03-02", "2022-03-01"]
    assert [candle["t"] for page in found for candle in page["candles"]] == [to_ms(at(day)) for day in days]
    assert not any("from=" in page["next"] for page in found[:-1])


# What is refused


@pytest.mark.parametrize(
    ("query", "named", "allowed"),
    [
        ("timeframe=2x", "2x", "<n>h"),
        ("timeframe=1M", "1mo", "<n>mo"),
        ("timeframe=0m", "0m", "1m"),
        ("timeframe=99999999h", "99999999h", "<n>h"),
        ("timeframe=1.5h", "1.5h", "<n>h"),
        ("timeframe=", "timeframe", "1m"),
        ("order=up", "up", "desc"),
        ("limit=0", "limit", None),
        ("limit=50001", "50000", None),
        ("limit=-1", "limit", None),
        ("limit=ten", "ten", None),
        ("limit=1e3", "1e3", None),
        ("from=yesterday", "yesterday", None),
        ("to=2024-02-30", "2024-02-30", None),
        ("from=1709546400", "1709546400", None),
        ("from=2201-01-01", "1970 to 2200", None),
        ("from=2024-03-05&to=2024-03-04", "must lie before", None),
        ("from=2024-03-05&to=2024-03-05", "must lie before", None),
        ("from=2030-01-01", "must lie before", None),
        ("form=2024-03-05", "form", "from"),
        ("Limit=5", "Limit", "limit"),
        ("limit=5&limit=6", "2 times", None),
        ("limit=5&limit=5", "2 times", None),
        ("from=%00", "from", None),
        ("timeframe=%F0%9F%92%A9", "timeframe", "1m"),
        ("timeframe=%ff", "timeframe", "1m"),
        ("from=" + "9" * 5000, "from", None),
    ],
)
def test_a_parameter_that_cannot_be_used_is_refused_with_what_can(
    client: TestClient[Any], query: str, named: str, allowed: str | None
) -> None:
    found = problem(client.get(f"{CANDLES}?{query}"), 400)
    assert found.error == "bad_request"
    assert named in found.message
    assert allowed is None or allowed in found.allowed


def test_an_unknown_symbol_is_refused_with_the_nearest(client: TestClient[Any]) -> None:
    found = problem(client.get("/api/candles/eurosd"), 404)
    assert found.error == "unknown_symbol"
    assert found.allowed[0] == "EURUSD"
    assert "EURUSD" in found.message


def test_a_place_that_is_not_there_is_refused_with_where_to_look(client: TestClient[Any]) -> None:
    for path in (
        "/",
        "/api",
        "/api/candles/EURUSD/5m",
        "/docs/app.js",
        "/docs/..%2fapp.py",
        "/healthz",
    ):
        found = problem(client.get(path), 404)
        assert found.error == "not_found"
        assert "/docs" in found.message


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", [CANDLES, "/health", "/docs", "/openapi.json"])
def test_another_method_is_refused_with_those_that_are_possible(
    client: TestClient[Any], method: str, path: str
) -> None:
    answer = client.request(method, path)
    found = problem(answer, 405)
    assert found.error == "method_not_allowed"
    assert method in found.message
    assert list(found.allowed) == answer.headers["Allow"].split(", ")
    assert "GET" in found.allowed


# Whatever bytes come


@pytest.fixture(scope="module")
def port(readable: Database) -> Iterator[int]:
    """The API behind a real server: a test client would tidy up what it is told to send."""
    server = uvicorn.Server(uvicorn.Config(app_of(readable), port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.02)
        assert thread.is_alive()
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    "path",
    [
        "/api/candles/%00",
        "/api/candles/EURUSD%00",
        "/api/candles/%ff",
        "/api/candles/%ED%A0%80",
        "/api/candles/%F0%9F%92%A9",
        "/api/candles/..%2f..%2fetc%2fpasswd",
        "/api/candles/%27%20OR%201=1--",
        "/api/candles/%25s%25(x)s{}",
        "/api/candles/" + "A" * 20_000,
        "/api/candles/" + quote("ß" * 100),
        "/api/candles/%20",
        "/api/candles/%0d%0aX-Evil:%201",
        "/docs/%00",
        "/docs/..%2f..%2fapp.py",
        "/%ff%fe",
    ],
)
def test_no_path_is_too_strange_for_a_plain_refusal(port: int, path: str) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = msgspec.json.decode(answer.read(), type=Problem)
    assert answer.status == 404
    assert body.error in {"unknown_symbol", "not_found"}
    assert len(body.message) < 25_000
    assert answer.getheader(SOURCE_HEADER)
    assert answer.getheader("X-Evil") is None


@settings(max_examples=40)
@given(st.text(max_size=12), st.dictionaries(st.text(max_size=6), st.text(max_size=12), max_size=3))
def test_no_text_at_all_is_a_fault_of_ours(client: TestClient[Any], symbol: str, given_query: dict[str, str]) -> None:
    """Refused or answered, but never a 500."""
    pairs = (f"{_escaped(name)}={_escaped(text)}" for name, text in given_query.items())
    answer = client.get(f"/api/candles/{_escaped(symbol)}?{'&'.join(pairs)}")
    assert answer.status_code in {200, 400, 404}
    assert SOURCE_HEADER in answer.headers


def _escaped(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")


# Health, and where the data come from


def test_health_tells_what_answers_here(client: TestClient[Any], readable: Database) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"status", "version", "engine", "database", "database_ms", "source"}
    assert (body["status"], body["version"], body["engine"]) == ("ok", __version__, readable.engine.name)
    assert (body["database"], body["source"]) == (readable.version, SOURCE)
    assert 0 < body["database_ms"] < 10_000


@pytest.mark.parametrize(
    "path",
    [
        CANDLES,
        "/api/candles/NOSUCH",
        f"{CANDLES}?limit=0",
        "/health",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/docs/swagger_bundle.js",
        "/nowhere",
    ],
)
def test_every_answer_names_the_source_of_the_data(readable: Database, path: str) -> None:
    """From the first one on, refusals and pages too: a replay's prices are never taken for real ones."""
    with TestClient(app_of(readable)) as fresh:
        assert fresh.get(path).headers[SOURCE_HEADER] == "replay (replay:csv): bars from files, not from the provider"
        assert fresh.post(path).headers[SOURCE_HEADER].startswith("replay")


@pytest.mark.parametrize(
    ("source", "header"),
    [
        (None, "none yet"),
        ("polygon", "polygon"),
        ("replay:synthetic", "synthetic (replay:synthetic): invented prices, no real market"),
    ],
)
@pytest.mark.parametrize("engine", ["plain"], indirect=True)
def test_the_source_is_the_one_recorded_in_the_database(
    database: str, engine: str, source: str | None, header: str
) -> None:
    """Also when the first bars come while the API is running."""
    db = checked(database, engine)
    with TestClient(app_of(db)) as one:
        assert one.get("/docs").headers[SOURCE_HEADER] == "none yet"
        with psycopg.connect(database) as conn:
            conn.execute("UPDATE market_data.installation SET source = %s", [source])
        for path in (CANDLES, "/docs", "/nowhere"):
            assert one.get(path).headers[SOURCE_HEADER] == header, path
        assert one.get("/health").json()["source"] == source


# Without a database


def block(admin: psycopg.Connection[Any], name: str, *, allow: bool) -> None:
    """Turn all connections to a database away, or let them in again."""
    text = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    admin.execute(text.format(sql.Identifier(name), sql.Literal(allow)))
    if not allow:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])


def test_while_the_database_is_down_every_call_that_needs_it_says_so_and_later_it_works_again(
    database: str, engine: str, request: pytest.FixtureRequest
) -> None:
    """503, not 500; the pages need no database; nothing has to be started again."""
    admin = request.getfixturevalue(f"{engine}_server").admin
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    db = checked(database, engine)
    db.pool.timeout = 0.5
    app = create_app(db, chosen(db), lambda: NOW)
    with TestClient(app, raise_server_exceptions=False) as one:
        assert one.get(CANDLES).status_code == 200
        block(admin, str(name), allow=False)
        try:
            for path in (CANDLES, "/health"):
                found = problem(one.get(path), 503)
                assert (found.error, "try again" in found.message) == ("unavailable", True)
            assert one.get("/docs").status_code == 200
            assert one.get("/openapi.json").status_code == 200
        finally:
            block(admin, str(name), allow=True)
        db.pool.timeout = 10
        assert one.get("/health").status_code == 200
        assert one.get(CANDLES).status_code == 200


@pytest.mark.parametrize("engine", ["plain"], indirect=True)
def test_a_failure_that_nobody_foresaw_is_told_in_short_and_logged_in_full(
    database: str, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No SQL, no names, no traceback over HTTP."""
    db = checked(database, engine)
    with TestClient(app_of(db), raise_server_exceptions=False) as one:
        with psycopg.connect(database) as conn:
            conn.execute("ALTER TABLE market_data.sync_state RENAME TO elsewhere")
        found = problem(one.get(CANDLES), 500)
    assert (found.error, found.message) == ("internal", "this is a fault of Candlewick: see its log")
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert CANDLES in record.getMessage()
    assert record.exc_info is not None


# The pages and the document


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_about_the_api_needs_no_other_host(client: TestClient[Any], path: str) -> None:
    """It works offline, and tells nobody that it was opened."""
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.search(r"""(https?:)?//""", answer.text)
    named = re.findall(r"""(?:src|href|from|url:|init\()\s*=?\s*["(]*(/[^"')]+)""", answer.text)
    assert "/openapi.json" in named
    assert len(named) >= 2
    for place in named:
        assert client.get(place).status_code == 200, place


@pytest.mark.parametrize(
    ("name", "kind"),
    [("swagger_bundle.js", "text/javascript"), ("swagger_style.css", "text/css"), ("redoc.js", "text/javascript")],
)
def test_the_scripts_of_the_pages_are_served_from_here(client: TestClient[Any], name: str, kind: str) -> None:
    answer = client.get(f"/docs/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    assert len(answer.content) > 10_000


def test_the_document_names_every_call_its_parameters_and_its_refusals(client: TestClient[Any]) -> None:
    document = client.get("/openapi.json").json()
    calls = {f"{method} {path}": call for path, entry in document["paths"].items() for method, call in entry.items()}
    assert {name: call["operationId"] for name, call in calls.items()} == {
        "get /api/candles/{symbol}": "getCandles",
        "get /api/candles": "getCandlesOfMany",
        "get /api/candles/{symbol}/latest": "getLatestOfSymbol",
        "get /api/latest": "getLatest",
        "get /v2/aggs/ticker/{ticker}/range/{multiplier}/{timespan}/{since}/{until}": "getAggs",
        "get /v2/aggs/ticker/{ticker}/prev": "getPreviousClose",
        "get /v2/aggs/grouped/locale/{locale}/market/{market}/{day}": "getGroupedDaily",
        "get /v3/reference/tickers": "listTickers",
        "get /v3/reference/tickers/{ticker}": "getTickerDetails",
        "get /udf/config": "getUdfConfig",
        "get /udf/time": "getUdfTime",
        "get /udf/symbols": "getUdfSymbol",
        "get /udf/search": "searchUdfSymbols",
        "get /udf/symbol_info": "getUdfSymbols",
        "get /udf/history": "getUdfHistory",
        "get /health": "getHealth",
        "get /api/sync/symbols": "getSymbols",
        "post /api/sync/symbols": "addSymbol",
        "get /api/sync/symbols/{symbol}": "getSymbol",
        "patch /api/sync/symbols/{symbol}": "changeSymbol",
        "delete /api/sync/symbols/{symbol}": "removeSymbol",
        "post /api/sync/sync/{symbol}": "syncSymbol",
        "post /api/sync/sync-all": "syncAll",
        "get /api/sync/status": "getStatus",
        "get /api/sync/status/{symbol}": "getSymbolStatus",
        "get /api/sync/health": "getSyncHealth",
        "get /scheduler/status": "getSchedulerStatus",
    }
    assert all(call["summary"] and call["description"] and call["tags"] for call in calls.values())
    candles = calls["get /api/candles/{symbol}"]
    described = {one["name"]: one["description"] for one in candles["parameters"]}
    asked = {"timeframe", "tz", "from", "to", "limit", "order", "fill", "format", "require_complete"}
    assert set(described) == {"symbol"} | asked
    assert {one["name"] for one in calls["get /api/candles"]["parameters"]} == {"symbols"} | asked
    assert all(described.values())
    assert all(one.value in described["timeframe"] for one in Timeframe)
    assert set(candles["responses"]) == {"200", "304", "400", "404", "406", "409", "503"}
    assert len(candles["responses"]["200"]["content"]) == 5
    for refusal in ("400", "404", "406", "409", "503"):
        schema = candles["responses"][refusal]["content"]["application/json"]["schema"]
        assert schema["$ref"].endswith("Problem")
    schemas = document["components"]["schemas"]
    shape = next(schema for name, schema in schemas.items() if name.endswith("CandlesAnswer"))
    assert {"symbol", "timeframe", "from", "to", "complete", "settled_to", "missing", "candles", "next"} <= set(
        shape["properties"]
    )
    shape = next(schema for name, schema in schemas.items() if name.endswith("Problem"))
    assert set(shape["properties"]) == {"error", "message", "allowed", "missing"}
    assert document["info"]["version"] == __version__
    assert "http" not in str(document.get("servers", ""))
