"""Candles of any length, zone and form: against an aggregation in plain Python, bar by bar."""

import csv
import gzip
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient
from psycopg import AsyncConnection

from service.api.app import create_app
from service.bars import Bars, to_ms
from service.coverage import MINUTE
from service.db.connect import Database, as_range
from service.db.preflight import checked
from service.latest import latest
from service.proof import Terms
from service.ranges import Range
from service.settings import load
from service.timeframes import Timeframe
from tests.integration.marketdata import SETTLE, at, filled_with, invent, minutes, only_active, put

NOW = at("2024-11-08 00:00:30")
SPRING, AUTUMN = at("2024-03-08 00:00"), at("2024-11-01 00:00")
"""Four days around each change of New York's clocks have bars."""
DAYS = timedelta(days=4)
DENSITY = {"EURUSD": 1.0, "GBPUSD": 0.3, "SPX500": 0.02, "BTCUSD": 0.003}
ZONES = ("UTC", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Europe/London")
LENGTHS = ("1m", "2m", "7m", "65m", "1h", "90m", "2h", "5h", "1d", "3d", "1w", "1mo", "2mo", "1y")


class Row(NamedTuple):
    """A candle as it ought to be."""

    t: int
    o: float
    h: float
    l: float  # noqa: E741 - as in the answers
    c: float
    v: float | None
    vw: float | None
    n: int | None


def bars_of(symbol: str) -> Bars:
    """The symbol's bars in both seasons: without volume for the index, some of zero volume for the others."""
    every = [*minutes(SPRING, SPRING + DAYS), *minutes(AUTUMN, AUTUMN + DAYS)]
    some = [one for place, one in enumerate(every) if place * 7919 % 1000 < 1000 * DENSITY[symbol]]
    return invent(some, len(symbol) + ord(symbol[0]), volume=symbol != "SPX500")


BARS = {symbol: bars_of(symbol) for symbol in DENSITY}


async def fill_seasons(db: Database) -> None:
    """Every symbol covered from before the first bar to the present."""
    async with db, db.connection() as conn:
        await only_active(conn, *DENSITY)
        for symbol, bars in BARS.items():
            await put(conn, db.engine, symbol, at("2024-01-01 00:00"), NOW.replace(second=0), now=NOW, bars=bars)
        await db.engine.refresh(conn, {}, NOW)


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def client(request: pytest.FixtureRequest) -> Iterator[TestClient[Any]]:
    with filled_with(request.getfixturevalue(f"{request.param}_server"), fill_seasons) as db:
        chosen = load({"DATABASE_URL": db.url, "ENGINE": db.engine.name, "RETENTION_1M": "off"}, env_file=None)
        with TestClient(create_app(checked(db.url, db.engine.name), chosen, lambda: NOW)) as one:
            yield one


def starts_of(length: str, zone: str) -> Mapping[int, int]:
    """For every minute of the seasons and a day around them the start of its candle, found minute by minute."""
    found: dict[int, int] = {}
    for season in (SPRING, AUTUMN):
        found |= _walk(length, zone, season)
    return found


def _walk(length: str, zone: str, season: datetime) -> Iterator[tuple[int, int]] | dict[int, int]:
    number, unit = int(length.rstrip("mhdwoy")), length.lstrip("0123456789")
    minutes_long = number * {"m": 1, "h": 60}.get(unit, 0)
    if not minutes_long:
        return _walk_dates(number, unit, zone, season)
    found, start, shown_before = {}, None, None
    at_minute = season - timedelta(days=1)
    while at_minute < season + DAYS + timedelta(days=1):
        shown = _wall_minutes(at_minute, zone)
        jumped = shown_before is not None and any(
            skipped % minutes_long == 0 for skipped in range(shown_before + 1, shown)
        )
        if shown % minutes_long == 0 or jumped:
            start = to_ms(at_minute)
        if start is not None:
            found[to_ms(at_minute)] = start
        shown_before = shown
        at_minute += MINUTE
    return found


def _wall_minutes(at_minute: datetime, zone: str) -> int:
    local = at_minute.astimezone(ZoneInfo(zone)).replace(tzinfo=UTC)
    return to_ms(local) // 60_000


def _walk_dates(number: int, unit: str, zone: str, season: datetime) -> dict[int, int]:
    found = {}
    at_minute = season - timedelta(days=1)
    while at_minute < season + DAYS + timedelta(days=1):
        day = at_minute.astimezone(ZoneInfo(zone)).date()
        if unit in {"d", "w"}:
            origin = datetime(1970, 1, 1) if unit == "d" else datetime(1969, 12, 29)  # noqa: DTZ001 - a date
            step = number * (7 if unit == "w" else 1)
            since = (day - origin.date()).days // step * step
            first = origin + timedelta(days=since)
        else:
            step = number * (12 if unit == "y" else 1)
            month = ((day.year - 1970) * 12 + day.month - 1) // step * step
            first = datetime(1970 + month // 12, month % 12 + 1, 1)  # noqa: DTZ001 - as above
        found[to_ms(at_minute)] = to_ms(first.replace(tzinfo=ZoneInfo(zone)))
        at_minute += MINUTE
    return found


def naive(symbol: str, length: str, zone: str) -> list[Row]:
    """All candles of a symbol, bar by bar."""
    starts, bars = starts_of(length, zone), BARS[symbol]
    groups: dict[int, list[int]] = {}
    for place, ts in enumerate(bars.ts.tolist()):
        groups.setdefault(starts[ts], []).append(place)
    rows = [_row(bars, start, places) for start, places in sorted(groups.items())]
    if length != "1m":
        return rows
    # A bar is served as it is stored, with the average that its source gave it, whatever its volume.
    averages = (None if math.isnan(one) else one for one in bars.vwap.tolist())
    return [row._replace(vw=average) for row, average in zip(rows, averages, strict=True)]


def _row(bars: Bars, start: int, places: Sequence[int]) -> Row:
    volumes = [float(bars.volume[place]) for place in places]
    counted = not math.isnan(volumes[0])
    total = math.fsum(volumes) if counted else None
    traded = math.fsum(bars.volume[place] * bars.vwap[place] for place in places) if counted else 0.0
    return Row(
        t=start,
        o=float(bars.open[places[0]]),
        h=float(max(bars.high[place] for place in places)),
        l=float(min(bars.low[place] for place in places)),
        c=float(bars.close[places[-1]]),
        v=total,
        vw=traded / total if total else None,
        n=int(sum(bars.trades[place] for place in places)) if counted else None,
    )


def same(found: Sequence[Mapping[str, Any]], wanted: Sequence[Row]) -> bool:
    """Exactly, but for the last digits of sums."""
    if [one["t"] for one in found] != [one.t for one in wanted]:
        return False
    return all(
        all(_close(one[name], value) for name, value in row._asdict().items())
        for one, row in zip(found, wanted, strict=True)
    )


def _close(one: float | None, other: float | None) -> bool:
    return one is other if one is None or other is None else math.isclose(one, other, rel_tol=1e-9)


def pages(client: TestClient[Any], path: str, asked: Mapping[str, object]) -> list[dict[str, Any]]:
    """All candles of an answer, as `next` leads from page to page; each page but the last is full."""
    body = client.get(path, params={name: str(value) for name, value in asked.items()}).raise_for_status().json()
    found = body["candles"]
    while body["next"]:
        assert len(body["candles"]) == asked["limit"]
        body = client.get(body["next"]).raise_for_status().json()
        found += body["candles"]
    return list(found)


def test_times_without_an_offset_are_of_the_zone_asked_for(client: TestClient[Any]) -> None:
    days = client.get("/api/candles/EURUSD?timeframe=1d&tz=Asia/Kolkata&from=2024-11-02&to=2024-11-04T00:00").json()
    assert [one["t"] for one in days["candles"]] == [to_ms(at("2024-11-01 18:30")), to_ms(at("2024-11-02 18:30"))]
    assert (days["from"], days["to"]) == (to_ms(at("2024-11-01 18:30")), to_ms(at("2024-11-03 18:30")))
    same_days = client.get(
        "/api/candles/EURUSD?timeframe=1d&tz=Asia/Kolkata&from=2024-11-01T18:30Z&to=2024-11-03T18:30Z"
    )
    assert same_days.json()["candles"] == days["candles"]


instants = st.datetimes(datetime(2024, 3, 1), datetime(2024, 11, 8)).map(lambda one: one.replace(tzinfo=UTC))  # noqa: DTZ001


@given(
    symbol=st.sampled_from(list(DENSITY)),
    length=st.sampled_from(LENGTHS),
    zone=st.sampled_from(ZONES),
    span=st.tuples(instants, instants).map(sorted),
    limit=st.integers(1, 700),
    order=st.sampled_from(["asc", "desc"]),
)
@settings(max_examples=60)
def test_every_candle_is_what_plain_python_makes_of_the_bars(  # noqa: PLR0917 - hypothesis names them
    client: TestClient[Any],
    symbol: str,
    length: str,
    zone: str,
    span: list[datetime],
    limit: int,
    order: str,
) -> None:
    """Whatever the length, the zone, the range and the pages, right through the changes of the clocks."""
    start, end = span[0], span[1] + MINUTE
    asked = {"timeframe": length, "tz": zone, "from": start.isoformat(), "to": end.isoformat(), "order": order}
    limit = max(limit, 20) if length in {"1m", "2m"} else limit
    found = pages(client, f"/api/candles/{symbol}", asked | {"limit": limit})
    wanted = [row for row in naive(symbol, length, zone) if to_ms(start) <= row.t < to_ms(end)]
    assert same(found, wanted if order == "asc" else wanted[::-1])


# Forms


ASKED = "timeframe=1h&tz=America/New_York&from=2024-11-02&to=2024-11-05"
TABLE_TYPES = {"csv": "text/csv; charset=utf-8", "arrow": "application/vnd.apache.arrow.stream"}


def as_rows(table: pa.Table) -> list[dict[str, Any]]:
    """A table in the words of the JSON answer."""
    names = dict(zip("ohlc", ("open", "high", "low", "close"), strict=True))
    names |= {"v": "volume", "vw": "vwap", "n": "trades"}
    columns = {short: table[name].to_pylist() for short, name in names.items()}
    columns["t"] = table["ts"].cast(pa.int64()).to_pylist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def plain(candles: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: one[name] for name in ("o", "h", "l", "c", "v", "vw", "n", "t")} for one in candles]


@pytest.mark.parametrize("symbol", ["EURUSD", "SPX500"])
def test_every_form_holds_the_same_candles(client: TestClient[Any], symbol: str) -> None:
    """JSON rows and columns, CSV, Arrow and Parquet; nulls where the source has nothing."""
    path = f"/api/candles/{symbol}?{ASKED}"
    body = client.get(path).json()
    wanted = plain(body["candles"])
    assert len(wanted) == (68 if symbol == "EURUSD" else len(wanted)) > 20

    columns = client.get(f"{path}&format=columns").json()
    final = columns["candles"].pop("final")
    assert [
        dict(zip(columns["candles"], row, strict=True)) for row in zip(*columns["candles"].values(), strict=True)
    ] == [{name: one[name] for name in ("t", "o", "h", "l", "c", "v", "vw", "n")} for one in wanted]
    assert final == [True] * len(wanted)
    assert {**columns, "candles": None} == {**body, "candles": None}

    arrow = client.get(f"{path}&format=arrow")
    table = pa.ipc.open_stream(arrow.content).read_all()
    assert as_rows(table) == wanted
    assert table["symbol"].to_pylist() == [symbol] * len(wanted)
    assert table["final"].to_pylist() == final
    parquet = pa.parquet.read_table(io.BytesIO(client.get(f"{path}&format=parquet").content))
    assert as_rows(parquet) == wanted
    for one in (table, parquet):
        told = msgspec.json.decode(one.schema.metadata[b"candlewick"])
        (proof,) = told["symbols"]
        assert {**proof, "candles": None, "next": None} == {**body, "candles": None, "next": None}
        assert told["source"] == "replay:csv"

    lines = list(csv.DictReader(io.StringIO(client.get(f"{path}&format=csv").text)))
    assert [float(line["close"]) for line in lines] == [one["c"] for one in wanted]
    assert [line["volume"] for line in lines][:1] == ([""] if symbol == "SPX500" else [lines[0]["volume"]])
    assert [to_ms(datetime.fromisoformat(line["ts"])) for line in lines] == [one["t"] for one in wanted]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("text/csv", "text/csv; charset=utf-8"),
        ("application/vnd.apache.arrow.stream, application/json;q=0.5", "application/vnd.apache.arrow.stream"),
        ("application/vnd.apache.parquet", "application/vnd.apache.parquet"),
        ("application/vnd.candlewick.columns+json", "application/vnd.candlewick.columns+json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("text/*;q=0.9, application/*;q=0.8", "text/csv; charset=utf-8"),
        ("*/*", "application/json"),
    ],
)
def test_accept_chooses_the_form(client: TestClient[Any], accept: str, media_type: str) -> None:
    answer = client.get("/api/candles/EURUSD?limit=2", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert "Accept" in answer.headers["vary"]
    named = client.get("/api/candles/EURUSD?limit=2&format=json", headers={"Accept": accept})
    assert named.headers["content-type"] == "application/json"


def test_an_accept_that_takes_no_form_is_refused_with_those_that_there_are(client: TestClient[Any]) -> None:
    answer = client.get("/api/candles/EURUSD", headers={"Accept": "image/png"})
    assert answer.status_code == 406
    assert "text/csv" in answer.json()["allowed"]


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("form", ["json", "columns", "csv", "arrow"])
def test_every_form_but_parquet_comes_compressed_to_those_who_accept_it(
    client: TestClient[Any], form: str, coding: str
) -> None:
    """A small answer whole, a large one as a stream; a tiny one is not worth it."""
    for path in (
        f"/api/candles/EURUSD?{ASKED}&format={form}",
        f"/api/candles/EURUSD?from=2024-11-02&limit=6000&format={form}",
    ):
        with client.stream("GET", path, headers={"Accept-Encoding": coding}) as answer:
            raw = b"".join(answer.iter_raw())
        assert answer.headers["content-encoding"] == coding
        whole = client.get(path, headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in whole.headers
        unpacked = (
            gzip.decompress(raw) if coding == "gzip" else pa.input_stream(io.BytesIO(raw), compression="zstd").read()
        )
        assert unpacked == whole.content
        assert len(raw) < len(whole.content)
    tiny = client.get("/api/candles/EURUSD?limit=1", headers={"Accept-Encoding": coding})
    assert "content-encoding" not in tiny.headers
    packed = client.get(f"/api/candles/EURUSD?{ASKED}&format=parquet", headers={"Accept-Encoding": coding})
    assert "content-encoding" not in packed.headers


def test_a_download_has_a_name(client: TestClient[Any]) -> None:
    for form in ("csv", "parquet"):
        answer = client.get(f"/api/candles/EURUSD?{ASKED}&format={form}")
        expected = f'attachment; filename="EURUSD_1h_2024-11-02_2024-11-05.{form}"'
        assert answer.headers["content-disposition"] == expected
        many = client.get(f"/api/candles?symbols=EURUSD,GBPUSD&{ASKED}&format={form}")
        assert "2-symbols_1h_2024-11-02" in many.headers["content-disposition"]


def test_a_table_says_in_headers_whether_it_is_complete_and_where_it_goes_on(client: TestClient[Any]) -> None:
    whole = client.get(f"/api/candles/EURUSD?{ASKED}&format=csv")
    assert whole.headers["x-complete"] == "true"
    assert "link" not in whole.headers
    page = client.get("/api/candles/EURUSD?from=2023-12-31&limit=5&format=csv")
    assert page.headers["x-complete"] == "false"
    assert msgspec.json.decode(page.headers["x-missing"]) == [
        {"from": to_ms(at("2023-12-31")), "to": to_ms(at("2024-01-01")), "reason": "never requested"}
    ]
    following = page.headers["link"].removeprefix("<").removesuffix('>; rel="next"')
    assert "format=csv" in following
    assert client.get(following).text.splitlines()[1] != page.text.splitlines()[1]


def test_a_long_answer_is_streamed_in_every_form_and_equal_to_its_pages(client: TestClient[Any]) -> None:
    """Without a limit, or with one above a page, and also where a window has no bar."""
    path = "/api/candles/GBPUSD?from=2024-01-15"
    paged = pages(client, "/api/candles/GBPUSD", {"from": "2024-01-15", "limit": 997})
    assert as_rows(pa.ipc.open_stream(client.get(f"{path}&format=arrow").content).read_all()) == plain(paged)
    assert plain(client.get(f"{path}&limit=10000000").json()["candles"]) == plain(paged)
    assert as_rows(pa.parquet.read_table(io.BytesIO(client.get(f"{path}&format=parquet").content))) == plain(paged)
    assert len(client.get(f"{path}&format=csv").text.splitlines()) == len(paged) + 1
    weeks = pa.ipc.open_stream(client.get(f"{path}&timeframe=1w&tz=Europe/London&format=arrow").content).read_all()
    assert same(
        as_rows(weeks), [row for row in naive("GBPUSD", "1w", "Europe/London") if row.t >= to_ms(at("2024-01-15"))]
    )


def test_above_a_page_a_limit_counts_lengths_of_time(client: TestClient[Any]) -> None:
    """60,000 minutes from January on hold no bar; the next page begins right behind them."""
    body = client.get("/api/candles/EURUSD?from=2024-01-01&limit=60000").json()
    assert body["candles"] == []
    assert f"from={to_ms(at('2024-01-01') + 60_000 * MINUTE)}" in body["next"]
    found = list(body["candles"])
    while body["next"]:
        body = client.get(body["next"]).json()
        found += body["candles"]
    assert [one["t"] for one in found] == BARS["EURUSD"].ts.tolist()


# Several symbols


def test_several_symbols_come_in_the_order_asked_for_each_with_its_own_proof(client: TestClient[Any]) -> None:
    body = client.get(f"/api/candles?symbols=GBPUSD,eurusd,GBPUSD&{ASKED}&limit=10").json()
    assert [one["symbol"] for one in body["symbols"]] == ["GBPUSD", "EURUSD"]
    for one in body["symbols"]:
        assert one == client.get(f"/api/candles/{one['symbol']}?{ASKED}&limit=10").json()
        assert client.get(one["next"]).status_code == 200
    table = pa.ipc.open_stream(
        client.get(f"/api/candles?symbols=GBPUSD,EURUSD&{ASKED}&format=arrow").content
    ).read_all()
    assert table["symbol"].unique().to_pylist() == ["GBPUSD", "EURUSD"]
    told = msgspec.json.decode(table.schema.metadata[b"candlewick"])["symbols"]
    assert [(one["symbol"], one["complete"]) for one in told] == [("GBPUSD", True), ("EURUSD", True)]


def test_an_unknown_one_among_several_is_refused_with_the_nearest(client: TestClient[Any]) -> None:
    answer = client.get("/api/candles?symbols=EURUSD,GBPUSB")
    assert answer.status_code == 404
    assert "GBPUSD" in answer.json()["allowed"]


# Complete or not at all


def test_what_must_be_complete_and_is_not_is_refused_with_what_is_missing(client: TestClient[Any]) -> None:
    missing = {"from": to_ms(at("2023-12-31")), "to": to_ms(at("2024-01-01")), "reason": "never requested"}
    for form in ("json", "csv", "arrow"):
        answer = client.get(f"/api/candles/EURUSD?from=2023-12-31&require_complete=true&format={form}")
        assert (answer.status_code, answer.json()["error"]) == (409, "incomplete")
        assert answer.json()["missing"] == [missing]
    many = client.get("/api/candles?symbols=EURUSD,GBPUSD&from=2023-12-31&require_complete=true")
    assert many.json()["missing"] == [{"symbol": name, **missing} for name in ("EURUSD", "GBPUSD")]
    assert client.get(f"/api/candles/EURUSD?{ASKED}&require_complete=true").status_code == 200
    unsettled = client.get("/api/candles/EURUSD?from=2024-11-07T23:59&require_complete=true")
    assert [one["reason"] for one in unsettled.json()["missing"]] == ["not settled"]


# Gaps


@given(
    symbol=st.sampled_from(["GBPUSD", "SPX500", "BTCUSD"]),
    length=st.sampled_from(["1m", "7m", "1h", "5h", "1d", "1w"]),
    zone=st.sampled_from(ZONES),
    start=instants,
    hours=st.integers(1, 200),
    limit=st.integers(100, 400),
    order=st.sampled_from(["asc", "desc"]),
    how=st.sampled_from(["flat", "null"]),
)
@settings(max_examples=40)
def test_gaps_are_filled_on_every_page_as_they_would_be_at_once(  # noqa: PLR0917 - as above
    client: TestClient[Any],
    symbol: str,
    length: str,
    zone: str,
    start: datetime,
    hours: int,
    limit: int,
    order: str,
    how: str,
) -> None:
    """The real candles stay as they are; between them stands one for each start, and says that it was put there."""
    length = "1h" if length == "1m" and hours > 20 else length
    end = min(start + timedelta(hours=hours) * (24 if length in {"1d", "1w"} else 1), NOW)
    asked = {"timeframe": length, "tz": zone, "from": start.isoformat(), "to": end.isoformat(), "order": order}
    found = filled_pages(client, symbol, asked | {"fill": how, "limit": limit})
    real = pages(client, f"/api/candles/{symbol}", asked | {"limit": 50_000})
    assert [one for one in found if "filled" not in one] == real
    found = found if order == "asc" else found[::-1]
    whole = filled_pages(client, symbol, asked | {"fill": how, "limit": 50_000, "order": "asc"})
    assert found == whole
    _check_filled(symbol, whole, how)


def filled_pages(client: TestClient[Any], symbol: str, asked: Mapping[str, object]) -> list[dict[str, Any]]:
    body = client.get(f"/api/candles/{symbol}", params={name: str(value) for name, value in asked.items()}).json()
    found = body["candles"]
    while body["next"]:
        body = client.get(body["next"]).raise_for_status().json()
        found += body["candles"]
    return list(found)


def _check_filled(symbol: str, found: Sequence[Mapping[str, Any]], how: str) -> None:
    bars = BARS[symbol]
    starts = [one["t"] for one in found]
    assert starts == sorted(set(starts))
    for one in found:
        if "filled" not in one:
            continue
        if how == "null":
            assert {one[name] for name in ("o", "h", "l", "c", "v", "vw", "n")} == {None}
            continue
        before = bars.close[bars.ts < one["t"]][-1]
        assert [one[name] for name in ("o", "h", "l", "c")] == [before] * 4
        assert one["v"] == one["n"] or symbol == "SPX500"
        assert one["vw"] is None


def test_no_price_is_carried_over_what_is_missing_or_still_to_come(client: TestClient[Any]) -> None:
    """Nothing before the first bar, nothing where nothing was asked for, nothing that is not settled."""
    early = client.get("/api/candles/EURUSD?timeframe=1d&from=2023-12-01&to=2024-03-07&fill=flat").json()["candles"]
    assert early == []
    last = client.get("/api/candles/BTCUSD?timeframe=1h&limit=50&fill=flat").json()["candles"]
    settled = client.get("/api/candles/BTCUSD?timeframe=1h&limit=1").json()["settled_to"]
    assert [one["t"] for one in last if "filled" in one]
    assert all(one["t"] + 3_600_000 <= settled for one in last if "filled" in one)
    nulls = client.get("/api/candles/BTCUSD?timeframe=1h&limit=50&fill=null").json()["candles"]
    assert [one["t"] for one in nulls] == [
        to_ms(NOW) // 3_600_000 * 3_600_000 - 3_600_000 * back for back in range(49, -1, -1)
    ]


def test_a_filled_stream_is_what_its_pages_are(client: TestClient[Any]) -> None:
    path = "/api/candles/GBPUSD?from=2024-03-07&to=2024-11-01&timeframe=5m&fill=flat"
    table = pa.ipc.open_stream(client.get(f"{path}&format=arrow").content).read_all()
    assert table["filled"].to_pylist().count(False) == len(
        client.get(path.replace("flat", "none") + "&limit=50000").json()["candles"]
    )
    asked = {"from": "2024-03-07", "to": "2024-11-01", "timeframe": "5m", "fill": "flat", "limit": 9999}
    assert as_rows(table) == plain(filled_pages(client, "GBPUSD", asked))


# The latest


def test_the_latest_bar_and_its_candle_of_every_symbol(client: TestClient[Any]) -> None:
    for timeframe in ("1m", "1h", "1d"):
        body = client.get(f"/api/latest?timeframe={timeframe}").json()
        assert [one["symbol"] for one in body["symbols"]] == sorted(DENSITY)
        for one in body["symbols"]:
            path = f"/api/candles/{one['symbol']}"
            assert one["bar"] == client.get(f"{path}?limit=1").json()["candles"][0]
            assert one["candle"] == client.get(f"{path}?limit=1&timeframe={timeframe}").json()["candles"][0]
            single = client.get(f"{path}/latest?timeframe={timeframe}").json()
            assert (single["bar"], single["candle"], single["timeframe"]) == (one["bar"], one["candle"], timeframe)
    only = client.get("/api/latest?symbols=btcusd,EURUSD").json()
    assert [one["symbol"] for one in only["symbols"]] == ["BTCUSD", "EURUSD"]
    assert [one["symbol"] for one in client.get("/api/latest?asset_type=index").json()["symbols"]] == ["SPX500"]
    assert client.get("/api/latest?symbols=NOPE").status_code == 404
    assert client.get("/api/latest?timeframe=2h").status_code == 400
    empty = client.get("/api/candles/ETHUSD/latest?timeframe=1w&tz=Asia/Tokyo").json()
    assert (empty["bar"], empty["candle"], empty["settled_to"], empty["tz"]) == (None, None, None, "Asia/Tokyo")


async def test_where_the_last_bars_were_withdrawn_the_latest_ones_are_earlier(database: str, engine: str) -> None:
    """The ledger still names where bars ended."""
    async with checked(database, engine) as db, db.connection() as conn:
        await only_active(conn, "EURUSD", "GBPUSD")
        for symbol in ("EURUSD", "GBPUSD"):
            await put(conn, db.engine, symbol, at("2024-11-01 00:00"), at("2024-11-02 00:00"), now=NOW)
        await db.engine.refresh(conn, {}, NOW)
        gone = Range(at("2024-11-01 20:30"), at("2024-11-02 00:00"))
        await conn.execute("DELETE FROM market_data.candles_1m WHERE symbol = 'EURUSD' AND ts >= %s", (gone.start,))
        await db.engine.derive(conn, {"EURUSD": gone})
        await conn.execute("INSERT INTO market_data.changes (symbol, range) VALUES ('EURUSD', %s)", (as_range(gone),))
        await db.engine.note(conn, [number for (number,) in await _ids(conn)])
        await db.engine.refresh(conn, {}, NOW)
        terms = Terms(now=NOW, settle=SETTLE, floors=db.engine.floors({}, NOW))
        found = await latest(conn, terms, Timeframe.H1)
        assert found.symbols == ["EURUSD", "GBPUSD"]
        assert found.bars.candles.ts.tolist() == [to_ms(at("2024-11-01 20:29")), to_ms(at("2024-11-01 23:59"))]
        assert found.candles.candles.ts.tolist() == [to_ms(at("2024-11-01 20:00")), to_ms(at("2024-11-01 23:00"))]


async def test_a_bar_whose_candle_is_still_to_be_refreshed_is_told_all_the_same(database: str, engine: str) -> None:
    """Bars that came late lie below what the aggregates have stored already."""
    async with checked(database, engine) as db, db.connection() as conn:
        await only_active(conn, "EURUSD")
        await put(conn, db.engine, "EURUSD", at("2024-11-01 00:00"), at("2024-11-06 00:00"), now=NOW)
        await db.engine.refresh(conn, {}, NOW)
        await put(conn, db.engine, "GBPUSD", at("2024-11-02 00:00"), at("2024-11-03 00:00"), now=NOW)
        terms = Terms(now=NOW, settle=SETTLE, floors=db.engine.floors({}, NOW))
        found = await latest(conn, terms, Timeframe.H1)
    assert found.symbols == ["EURUSD", "GBPUSD"]
    assert found.with_candle == (["EURUSD"] if engine == "timescaledb" else ["EURUSD", "GBPUSD"])


async def _ids(conn: AsyncConnection[Any]) -> list[tuple[int]]:
    return await (await conn.execute("SELECT max(id) FROM market_data.changes")).fetchall()
