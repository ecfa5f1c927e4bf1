"""Whatever stands in a request for candles: it is answered, or refused in one shape that says what can be had."""

import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient

from service.api.asking import MOST_SYMBOLS
from service.api.negotiation import FORMATS, MEDIA_TYPES
from service.api.problems import Problem
from service.db.connect import Database
from service.frames import PAGE
from tests.integration.marketdata import filled
from tests.integration.test_api import app_of

ONE, MANY, END, ENDS = "/api/candles/EURUSD", "/api/candles", "/api/candles/EURUSD/latest", "/api/latest"
RANGE = "from=2024-03-04&to=2024-03-05"
LONG = "x" * 5000


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def readable(request: pytest.FixtureRequest) -> Iterator[Database]:
    """The filled database, which no test here may change."""
    with filled(request.getfixturevalue(f"{request.param}_server")) as db:
        yield db


@pytest.fixture(scope="module")
def client(readable: Database) -> Iterator[TestClient[Any]]:
    with TestClient(app_of(readable), raise_server_exceptions=False) as one:
        yield one


def problem(answer: Any, *statuses: int) -> Problem:  # noqa: ANN401 - httpx's, of whichever client
    """The body of a refusal: exactly the one shape that errors have."""
    assert answer.status_code in statuses, answer.text[:2000]
    assert answer.headers["content-type"] == "application/json"
    found = msgspec.json.decode(answer.content, type=Problem)
    expected = {"error", "message", "allowed"} | ({"missing"} if found.error == "incomplete" else set())
    assert set(answer.json()) == expected
    assert found.message
    return found


def header(name: str, text: str) -> dict[bytes, bytes]:
    """As bytes: the client would refuse some of them."""
    return {name.encode(): text.encode("latin-1")}


# What a parameter may not be

SPANS = (ONE, f"{MANY}?symbols=EURUSD", END)
BAD_SPANS = {
    "timeframe=": "<n>m",
    "timeframe=0h": "<n>h",
    "timeframe=-5m": "<n>m",
    "timeframe=5": "<n>m",
    "timeframe=m5": "<n>m",
    "timeframe=1M": "<n>mo",
    "timeframe=5s": "<n>m",
    "timeframe=1.5h": "<n>h",
    "timeframe=99999999999m": "<n>m",
    "timeframe=367d0": "<n>d",
    "timeframe=9000h": "<n>h",
    "timeframe=11y": "<n>y",
    "timeframe=%D9%A5m": "<n>m",
    f"timeframe={LONG}": "<n>m",
    "timeframe=5m%00": "<n>m",
}
BAD_ZONES = {
    "tz=": "America/New_York",
    "tz=Europe/Berln": "Europe/Berlin",
    "tz=%2B02:00": "IANA",
    "tz=../../etc/passwd": "IANA",
    "tz=/etc/localtime": "IANA",
    "tz=Europe": "Europe/Rome",
    "tz=EURUSD%00": "IANA",
    f"tz={LONG}": "IANA",
}
BAD_READS = {
    "from=": "ISO 8601",
    "from=yesterday": "ISO 8601",
    "to=2024-02-30": "ISO 8601",
    "to=2024-03-04T25:00": "ISO 8601",
    "from=1709546400": "Unix ms",
    "from=-1": "Unix ms",
    "from=1e12": "Unix ms",
    f"from={'9' * 5000}": "Unix ms",
    "from=1969-12-31": "1970 to 2200",
    "to=2200-01-01": "1970 to 2200",
    "to=9999-12-31T23:59:59.999999-23:59": "ISO 8601",
    "from=0001-01-01T00:00%2B23:59": "ISO 8601",
    "from=2024-03-05&to=2024-03-04": "must lie before",
    "from=2024-03-05&to=2024-03-05": "must lie before",
    "from=2199-01-01": "must lie before",
    "limit=0": "1 to 10000000",
    "limit=-1": "1 to 10000000",
    "limit=10000001": "1 to 10000000",
    "limit=99999999999999999999": "1 to 10000000",
    "limit=1e3": "1 to 10000000",
    "limit=0x10": "1 to 10000000",
    "limit=%D9%A3": "1 to 10000000",
    "limit=NaN": "1 to 10000000",
    f"limit={PAGE + 1}": "needs `from`",
    f"limit={PAGE + 1}&from=2024-03-01&order=desc": "order=desc",
    f"limit={PAGE + 1}&from=2024-03-01&format=columns": "format=columns",
    "order=up": "desc",
    "order=": "desc",
    "fill=zero": "flat",
    "fill=": "flat",
    "format=xml": "parquet",
    "format=": "parquet",
    "format=arrow,csv": "parquet",
    "require_complete=1": "true",
    "require_complete=": "true",
    "symbols=EURUSD": "unknown parameter 'symbols'",
    "form=csv": "format",
    "FROM=2024-03-04": "from",
    "limit=5&limit=5": "2 times",
    "%00=1": "timeframe",
    "cursor=abc": "timeframe",
}
BAD_LISTS = {
    "": "give 1 to 1000",
    "?symbols=": "give 1 to 1000",
    "?symbols=,,%20,": "give 1 to 1000",
    f"?symbols={','.join(f'S{n}' for n in range(MOST_SYMBOLS + 1))}": "give 1 to 1000",
    "?symbols=EURUSD&symbols=GBPUSD": "2 times",
    f"?symbols=EURUSD,GBPUSD,USDJPY,XAUUSD,SPX500&limit={PAGE}": "200000",
    f"?symbols=EURUSD,GBPUSD&from=2024-03-01&limit={PAGE + 1}": "200000",
    f"?symbols=EURUSD,GBPUSD&{RANGE}&limit=5&format=csv": "either `from` or `limit`",
}
BAD_ENDS = {
    "timeframe=2h": "4h",
    "timeframe=": "1m",
    f"timeframe={LONG}": "1m",
    "tz=UTC": "asset_type",
    "asset_type=bond": "crypto",
    "asset_type=": "crypto",
    "symbols=": "give 1 to 1000",
    f"symbols={','.join(f'S{n}' for n in range(10_000))}": "give 1 to 1000",
    "limit=5": "asset_type",
    "timeframe=1m&timeframe=5m": "timeframe",
}
BAD = [
    *((f"{path}{'&' if '?' in path else '?'}{bad}", named) for path in SPANS for bad, named in BAD_SPANS.items()),
    *((f"{path}{'&' if '?' in path else '?'}{bad}", named) for path in SPANS for bad, named in BAD_ZONES.items()),
    *((f"{ONE}?{bad}", named) for bad, named in BAD_READS.items()),
    *((f"{MANY}{bad}", named) for bad, named in BAD_LISTS.items()),
    *((f"{END}?{bad}", "tz") for bad in ("limit=5", "from=2024-03-04", "timeframes=5m")),
    *((f"{ENDS}?{bad}", named) for bad, named in BAD_ENDS.items()),
]


@pytest.mark.parametrize(("path", "named"), [pytest.param(path, named, id=path[:90]) for path, named in BAD])
def test_what_cannot_be_used_is_refused_with_what_can(client: TestClient[Any], path: str, named: str) -> None:
    found = problem(client.get(path), 400)
    assert found.error == "bad_request"
    assert named in found.message or named in found.allowed
    assert len(found.message) < 2 * len(path) + 1000


@pytest.mark.parametrize("path", ["/api/candles/EURUSDX", f"{MANY}?symbols=EURUSD,EURUSDX", f"{ENDS}?symbols=EURUSDX"])
def test_an_unknown_symbol_comes_with_the_nearest(client: TestClient[Any], path: str) -> None:
    found = problem(client.get(path), 404)
    assert (found.error, found.allowed[0]) == ("unknown_symbol", "EURUSD")


@pytest.mark.parametrize(
    "name", ["%00", "%ff", "EUR%2FUSD", "E" * 33, "%F0%9F%92%A9", "EURUSD%0A", "EURUSD%20", "%22%27;--", "..%2f..%2fx"]
)
@pytest.mark.parametrize("path", ["/api/candles/{}", "/api/candles/{}/latest", "/api/candles?symbols={}", ENDS])
def test_what_can_be_no_symbol_is_an_unknown_one(client: TestClient[Any], path: str, name: str) -> None:
    """Blanks around one are taken off in a list, where people write them."""
    asked = f"{ENDS}?symbols={name}" if path == ENDS else path.format(name)
    if "symbols=" in asked and name in {"EURUSD%0A", "EURUSD%20"}:
        assert client.get(asked).status_code == 200
        return
    assert problem(client.get(asked), 404).error in {"unknown_symbol", "not_found"}


def test_ten_thousand_symbols_are_refused_before_any_is_looked_for(client: TestClient[Any]) -> None:
    names = ",".join(f"S{n:04}" for n in range(10_000))
    for path in (f"{MANY}?symbols={names}", f"{ENDS}?symbols={names}"):
        began = time.monotonic()
        found = problem(client.get(path), 400)
        assert time.monotonic() - began < 1
        assert "10000" in found.message
        assert len(found.message) < 200


def test_the_same_symbol_nine_thousand_times_is_one(client: TestClient[Any]) -> None:
    body = client.get(f"{MANY}?symbols={','.join(['EURUSD', 'eurusd'] * 4500)}&limit=1").json()
    assert [one["symbol"] for one in body["symbols"]] == ["EURUSD"]


@pytest.mark.parametrize("symbol", ["EURUSD", "BTCUSD"])
@pytest.mark.parametrize("fill", ["none", "null", "flat"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_more_time_than_there_is_may_be_asked_for(client: TestClient[Any], symbol: str, fill: str, order: str) -> None:
    """The longest candles, as many as a page takes, are half a million years; also where there is no bar."""
    for timeframe in ("10y", "40q", "120mo", "520w", "3650d", "366d", "8784h", "527040m"):
        for zone in ("UTC", "America/New_York"):
            query = {"timeframe": timeframe, "tz": zone, "limit": str(PAGE), "fill": fill, "order": order}
            for start in ({}, {"from": "1970-01-01"}):
                answer = client.get(f"/api/candles/{symbol}", params=query | start)
                assert answer.status_code == 200, answer.text
                assert len(answer.json()["candles"]) < 1000


# What a header may not be


@pytest.mark.parametrize(
    "accept",
    ["text/html", "image/*", "*/*;q=0", "text/csv;q=0", "q=1", ";;;,,,", "application/json;q=nan", "\xff\xfe", LONG],
)
def test_a_form_that_there_is_not_is_refused_with_those_that_there_are(client: TestClient[Any], accept: str) -> None:
    for path in (ONE, f"{MANY}?symbols=EURUSD"):
        found = problem(client.get(path, headers=header("Accept", accept)), 406)
        assert (found.error, list(found.allowed)) == ("not_acceptable", [MEDIA_TYPES[form] for form in FORMATS])


@pytest.mark.parametrize(
    "coding",
    ["br", "identity;q=0", "gzip;q=0", "zstd;q=nan", "gzip;q=", "gzip;q=x", "zstd;q=-1", ",,,;", "\xff", "*;q=0", LONG],
)
def test_a_coding_that_there_is_not_leaves_the_answer_as_it_is(client: TestClient[Any], coding: str) -> None:
    answer = client.get(f"{ONE}?{RANGE}", headers=header("Accept-Encoding", coding))
    assert answer.status_code == 200
    assert "Content-Encoding" not in answer.headers


@pytest.mark.parametrize(
    "tag",
    ['""', '"x"', "W/", '"0.0.0.1json-identity"', f'"{"f" * 15}.{"f" * 15}.{"f" * 15}.1json-identity"', '"' * 5000,
     "\xff", ", ".join(f'"{n:x}.1.1.1json-identity"' for n in range(3000)), '"1.1.1.1json-identity\'; SELECT 1--"'],
)  # fmt: skip
def test_a_tag_that_is_not_ours_brings_the_whole_answer(client: TestClient[Any], tag: str) -> None:
    """Also one that looks like ours, and thousands of them at once."""
    headers = {**header("If-None-Match", tag), b"Accept-Encoding": b"identity"}
    answer = client.get(f"{ONE}?{RANGE}", headers=headers)
    assert (answer.status_code, len(answer.json()["candles"])) == (200, 500)
    assert "ETag" in answer.headers


def test_a_page_that_was_tampered_with_is_another_question_or_a_refusal(client: TestClient[Any]) -> None:
    """The next page is named by ordinary parameters: there is no cursor to forge."""
    page = client.get(f"{ONE}?{RANGE}&limit=100").json()["next"]
    assert page.startswith(f"{ONE}?")
    for place in range(len(ONE) + 1, len(page)):
        for tampered in (page[:place] + "9" + page[place + 1 :], page[:place], page[:place] + "%00" + page[place:]):
            answer = client.get(tampered)
            if answer.status_code != 200:
                problem(answer, 400)


@pytest.mark.parametrize("host", ["x:99999999", "x:-1", "[::1", "]", "\xff<>", "", "x y", "a" * 5000, "x:80:80", "@"])
def test_no_host_is_too_strange_for_a_refusal(client: TestClient[Any], host: str) -> None:
    """It is not ours to judge; a proxy may have written it."""
    for path, status in (("/nowhere", 404), (f"{ONE}?limit=0", 400), (f"{ONE}?limit=1", 200), (ENDS, 200)):
        answer = client.get(path, headers=header("Host", host))
        if answer.status_code == 200:
            assert status == 200
        else:
            problem(answer, status, 400)


# Any text at all

TEXT: dict[str, list[str]] = {
    "timeframe": ["1m", "7m", "4h", "1d", "3650d", "527040m", "520w", "120mo", "40q", "10y"],
    "tz": ["UTC", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "Africa/Monrovia"],
    "from": ["0", "1970-01-01", "2022-03-01", "2024-03-04", "1709546400001", "2024-03-05T12:07:30"],
    "to": ["1970-01-02", "2024-03-05", "2024-03-05T12:07:31", "2199-12-31T23:59:59.999"],
    "limit": ["1", "999", "50000", "50001", "10000000"],
    "order": ["asc", "desc"],
    "fill": ["none", "null", "flat"],
    "format": list(FORMATS),
    "require_complete": ["true", "false"],
    "symbols": ["EURUSD", "BTCUSD,SPX500", "XAUUSD,GBPUSD,USDJPY"],
    "asset_type": ["forex", "stock"],
}
HEADERS = {
    "Accept": ["*/*", "text/csv", "application/json;q=0.1"],
    "Accept-Encoding": ["gzip", "zstd", "identity"],
    "If-None-Match": ["*", '"1.1.1.1json-gzip"'],
}
printable = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=20)


def some(known: Mapping[str, list[str]], other: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    """Some of the names, with values of theirs or any other."""
    return st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(values * 3) | other for name, values in known.items()}
    )


@settings(max_examples=250)
@given(
    st.sampled_from(["EURUSD", "SPX500", "BTCUSD", "XAUUSD"]) | st.text(min_size=1, max_size=8),
    st.sampled_from(["/api/candles/{}", "/api/candles/{}/latest", MANY, ENDS]),
    some(TEXT, st.text(max_size=12)),
    some(HEADERS, printable),
)
def test_no_text_in_a_parameter_or_a_header_is_a_fault_of_ours(
    client: TestClient[Any], symbol: str, path: str, query: dict[str, str], headers: dict[str, str]
) -> None:
    """Refused in the one shape, or answered; parameters that a call does not have are left out half of the time."""
    allowed = {"/api/candles/{}": set(TEXT) - {"symbols", "asset_type"}, MANY: set(TEXT) - {"asset_type"}}.get(
        path, {"timeframe", "tz"} if path != ENDS else {"timeframe", "symbols", "asset_type"}
    )
    asked = {name: text for name, text in query.items() if name in allowed or len(query) % 5 == 4}
    place = path.format(quote(symbol, safe="", errors="surrogatepass"))
    given_headers = {name.encode(): text.strip().encode("latin-1") for name, text in headers.items()}
    answer = client.get(f"{place}?{urlencode(asked, errors='surrogatepass')}", headers=given_headers)
    if answer.status_code not in {200, 304}:
        problem(answer, 400, 404, 406, 409)
