"""ETags and answers kept in memory: what is closed is read once, and no answer shows what a correction replaced."""

import asyncio
import math
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient

from service import latest, windows
from service.api.app import create_app
from service.coverage import MINUTE
from service.db.connect import Database
from service.db.preflight import checked
from service.proof import Terms
from service.settings import load
from service.timeframes import Timeframe
from tests.integration.marketdata import NOW, at, filled, invent, minutes, put

CLOSED = "/api/candles/EURUSD?timeframe=1h&from=2024-03-02&to=2024-03-03"

UNPACKED = {"Accept-Encoding": "identity"}


class Sides:
    """The same database served twice: with a memory, and without one."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.now = NOW
        base = {"DATABASE_URL": db.url, "ENGINE": db.engine.name, "RETENTION_1M": "off"}
        self.apps = [
            create_app(checked(db.url, db.engine.name), load(base | {"CACHE_MB": size}, None), lambda: self.now)
            for size in ("64", "0")
        ]

    def write(self, symbol: str, start: Any, end: Any, seed: int, *, refresh: bool = True) -> None:  # noqa: ANN401 - instants
        """Bars of a range, as the provider has them now."""

        async def run() -> None:
            async with checked(self.db.url, self.db.engine.name) as db, db.connection() as conn:
                await put(conn, db.engine, symbol, start, end, now=self.now, bars=invent(minutes(start, end), seed))
                if refresh:
                    await db.engine.refresh(conn, {}, self.now)

        asyncio.run(run())


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def sides(request: pytest.FixtureRequest) -> Iterator[Sides]:
    with filled(request.getfixturevalue(f"{request.param}_server")) as db:
        yield Sides(db)


@pytest.fixture(scope="module")
def kept(sides: Sides) -> Iterator[TestClient[Any]]:
    with TestClient(sides.apps[0]) as one:
        one.headers.update(UNPACKED)
        yield one


@pytest.fixture(scope="module")
def fresh(sides: Sides) -> Iterator[TestClient[Any]]:
    with TestClient(sides.apps[1]) as one:
        one.headers.update(UNPACKED)
        yield one


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes the symbol of each window that is read of the database."""
    found: list[str] = []
    real = windows.window

    async def window(conn: Any, symbol: str, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - passed on
        found.append(symbol)
        return await real(conn, symbol, *args, **options)

    monkeypatch.setattr(windows, "window", window)
    return found


def test_a_closed_range_is_read_once(kept: TestClient[Any], reads: list[str]) -> None:
    first = kept.get(CLOSED)
    count = len(reads)
    again = kept.get(CLOSED)
    assert len(reads) == count > 0
    assert again.content == first.content
    for name in ("etag", "cache-control", "vary", "content-type", "content-length", "x-data-source"):
        assert again.headers[name] == first.headers[name]
    assert first.headers["cache-control"] == "public, no-cache"


def test_whoever_has_it_already_is_told_so_whether_or_not_it_is_in_memory(
    kept: TestClient[Any], fresh: TestClient[Any]
) -> None:
    for client in (kept, fresh):
        tag = client.get(CLOSED).headers["etag"]
        for sent in (tag, f'"other", {tag}', f"W/{tag}", "*"):
            answer = client.get(CLOSED, headers={"If-None-Match": sent})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert client.get(CLOSED, headers={"If-None-Match": '"other"'}).status_code == 200
        gzipped = client.get(CLOSED, headers={"If-None-Match": tag, "Accept-Encoding": "gzip"})
        assert gzipped.status_code == 200, "another coding is another answer"


@pytest.mark.parametrize(
    "path",
    [
        "/api/candles/EURUSD?timeframe=1h&limit=5",
        "/api/candles/EURUSD?timeframe=1h&from=2024-03-05",
        "/api/candles/EURUSD?timeframe=4h&from=2024-03-05&to=2024-03-05T11:00",
        "/api/candles/GBPUSD?from=2024-03-02&to=2024-03-04",
        "/api/candles/USDJPY?from=2024-03-04&to=2024-03-05",
        "/api/candles/ETHUSD?from=2024-03-04&to=2024-03-05",
        "/api/candles/EURUSD/latest",
        "/api/latest",
        "/api/candles?symbols=EURUSD,GBPUSD&from=2024-03-02&to=2024-03-04",
        "/api/candles/EURUSD?fill=flat&from=2022-03-01&to=2022-03-02",
        "/api/candles/EURUSD?to=2022-03-01T00:50&limit=100",
        "/api/candles/EURUSD?to=2022-03-01T00:50&limit=100&order=desc",
    ],
)
def test_what_may_still_change_by_itself_is_never_kept(kept: TestClient[Any], path: str) -> None:
    """The forming candle, a range that is not settled or covered, whatever the lengths and gaps are cut to."""
    answer = kept.get(path)
    assert answer.status_code == 200
    assert "etag" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"


def test_a_correction_is_in_the_very_next_answer(sides: Sides, kept: TestClient[Any], fresh: TestClient[Any]) -> None:
    """And the tag of before does not hold any more; one of another range still does."""
    other = CLOSED.replace("2024-03-03", "2024-03-02T12:00")
    before, elsewhere = kept.get(CLOSED), kept.get(other)
    start = at("2024-03-02 20:00")
    sides.write("EURUSD", start, start + 7 * MINUTE, 77)
    after = kept.get(CLOSED)
    assert after.json()["candles"] != before.json()["candles"]
    for client in (kept, fresh):
        assert client.get(CLOSED, headers={"If-None-Match": before.headers["etag"]}).status_code == 200
        tag = elsewhere.headers["etag"]
        assert client.get(other, headers={"If-None-Match": tag}).status_code == 304


def test_a_tag_of_another_database_or_time_line_does_not_hold(kept: TestClient[Any], fresh: TestClient[Any]) -> None:
    """A database made anew counts its changes from one again; one from a backup has others of the same number."""
    installed, change, changed, form = kept.get(CLOSED).headers["etag"].strip('"').split(".")
    for forged in (
        f"{int(installed, 16) + 1:x}.{change}.{changed}.{form}",
        f"{installed}.{change}.{int(changed, 16) + 1:x}.{form}",
        f"{installed}.{int(change, 16) + 1000:x}.{changed}.{form}",
        f"{installed}.{change}.{changed}.9json-identity",
        f"{'f' * 15}.{'f' * 15}.{'f' * 15}.{form}",
    ):
        for client in (kept, fresh):
            assert client.get(CLOSED, headers={"If-None-Match": f'"{forged}"'}).status_code == 200


def test_a_removed_symbol_is_in_no_memory(sides: Sides, kept: TestClient[Any]) -> None:
    """Nor is an answer about a time before its first bar."""
    start = at("2024-02-01 00:00")
    sides.write("AUDUSD", start, start + timedelta(days=1), 3)
    paths = [f"/api/candles/AUDUSD?from={day}&to={day}T12:00" for day in ("2024-02-01",)]
    assert all(kept.get(path).headers["etag"] for path in paths)
    assert kept.delete("/api/sync/symbols/AUDUSD?purge=true").status_code == 204
    assert all(kept.get(path).status_code == 404 for path in paths)


def test_a_large_answer_is_kept_when_it_is_asked_for_again(kept: TestClient[Any], reads: list[str]) -> None:
    """The first pass over years of bars pushes nothing out; the third is answered from memory, with its length."""
    path = "/api/candles/EURUSD?from=2024-03-01&to=2024-03-05&format=arrow"
    first = kept.get(path)
    assert "content-length" not in first.headers
    assert kept.get(path).content == first.content
    count = len(reads)
    third = kept.get(path)
    assert len(reads) == count
    assert third.content == first.content
    assert int(third.headers["content-length"]) == len(first.content)


def test_the_latest_candles_are_read_again_only_when_something_has_changed(
    sides: Sides, kept: TestClient[Any], reads: list[str]
) -> None:
    """A new bar, a correction, or a look of the worker at the symbol."""
    path = "/api/candles/EURUSD?timeframe=5m&limit=20"
    first = kept.get(path).json()
    count = len(reads)
    assert kept.get(path).json() == first
    assert len(reads) == count
    start = at("2024-03-05 12:00")
    sides.write("EURUSD", start, start + 3 * MINUTE, 78)
    assert kept.get(path).json()["candles"] != first["candles"]


async def test_the_ends_of_all_symbols_are_looked_up_again_only_when_something_has_changed(
    database: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write, the refresh of what came late, or retention that has come to one of them."""
    looks = 0
    real = latest._Look._look_up

    async def look_up(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - passed on as it is
        nonlocal looks
        looks += 1
        return await real(*args, **options)

    monkeypatch.setattr(latest._Look, "_look_up", look_up)
    lookups, day = latest.Lookups(), at("2024-03-02 00:00")
    async with checked(database, engine) as db, db.connection() as conn:

        async def ends(floor: datetime | None = None) -> tuple[list[str], int]:
            """Whose candles of an hour there are, and how often was looked for them or their bars."""
            nonlocal looks
            looks = 0
            terms = Terms(now=NOW, settle=timedelta(minutes=15), floors=dict.fromkeys(Timeframe, floor))
            found = await latest.latest(conn, terms, Timeframe.H1, lookups=lookups)
            return found.with_candle, looks

        await put(conn, db.engine, "EURUSD", day, day + timedelta(days=2), now=NOW)
        await db.engine.refresh(conn, {}, NOW)
        assert await ends() == (["EURUSD"], 2)
        assert await ends() == (["EURUSD"], 0)
        await put(conn, db.engine, "XAUUSD", day, day + timedelta(days=1), now=NOW)
        late = engine == "timescaledb"  # below what is materialised
        assert (await ends())[0] == (["EURUSD"] if late else ["EURUSD", "XAUUSD"])
        assert (await ends())[1] == 0
        await db.engine.refresh(conn, {}, NOW)
        assert (await ends())[0] == ["EURUSD", "XAUUSD"]
        assert await ends() == (["EURUSD", "XAUUSD"], 0)
        assert (await ends(floor=day + timedelta(hours=30)))[1] == 2


def test_what_retention_has_taken_is_not_answered_from_memory(sides: Sides) -> None:
    """The floor rises while an answer is kept."""
    base = {"DATABASE_URL": sides.db.url, "ENGINE": sides.db.engine.name, "RETENTION_1M": "3 days"}
    now = NOW
    app = create_app(checked(sides.db.url, sides.db.engine.name), load(base, None), lambda: now)
    path = "/api/candles/EURUSD?from=2024-03-03&to=2024-03-04"
    with TestClient(app) as client:
        assert client.get(path).json()["missing"] == []
        now = NOW + timedelta(days=1)
        missing = client.get(path).json()["missing"]
    assert [one["reason"] for one in missing] == (["expired"] if sides.db.engine.name == "timescaledb" else [])


def test_without_its_database_the_memory_answers_nothing(sides: Sides) -> None:
    """It cannot know whether something has changed."""
    app = create_app(
        checked(sides.db.url, sides.db.engine.name),
        load({"DATABASE_URL": sides.db.url, "ENGINE": sides.db.engine.name}, None),
        lambda: NOW,
    )
    with (
        TestClient(app, raise_server_exceptions=False) as client,
        psycopg.connect(sides.db.url, autocommit=True) as admin,
    ):
        assert client.get(CLOSED).status_code == 200
        name = admin.info.dbname
        with psycopg.connect(sides.db.url.replace(name, "postgres"), autocommit=True) as other:
            limit = psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
            admin.close()
            other.execute(limit.format(psycopg.sql.Identifier(name), psycopg.sql.SQL("false")))
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            try:
                assert client.get(CLOSED).status_code == 503
            finally:
                other.execute(limit.format(psycopg.sql.Identifier(name), psycopg.sql.SQL("true")))


RANGES = st.builds(
    "/api/candles/{}?timeframe={}&from=2024-03-0{}&to=2024-03-0{}{}".format,
    st.sampled_from(["EURUSD", "XAUUSD"]),
    st.sampled_from(["1m", "5m", "1h", "2h", "1d"]),
    st.integers(1, 2),
    st.integers(3, 5),
    st.sampled_from(
        ["", "&format=columns", "&limit=50&order=desc", "&fill=flat", "&tz=America/New_York", "&format=csv"]
    ),
)
LATEST = st.builds(
    "/api/candles/{}?timeframe={}&limit={}{}".format,
    st.sampled_from(["EURUSD", "XAUUSD"]),
    st.sampled_from(["1m", "5m", "1h", "2h", "1d"]),
    st.sampled_from([3, 500]),
    st.sampled_from(["", "&order=desc", "&tz=America/New_York", "&format=csv"]),
)
ENDS = st.sampled_from(
    [
        "/api/latest",
        "/api/latest?timeframe=1h",
        "/api/latest?timeframe=1d&symbols=EURUSD,XAUUSD",
        "/api/latest?timeframe=5m&asset_type=forex",
    ]
)
PATHS = RANGES | LATEST | ENDS
WRITES = st.tuples(
    st.sampled_from(["EURUSD", "XAUUSD"]), st.integers(1, 5), st.integers(0, 700), st.integers(1, 90), st.booleans()
)


@given(steps=st.lists(PATHS | WRITES, min_size=4, max_size=12))
@settings(max_examples=12)
def test_with_a_memory_every_answer_is_what_it_is_without(
    sides: Sides, kept: TestClient[Any], fresh: TestClient[Any], steps: list[str | tuple[str, int, int, int, bool]]
) -> None:
    """Whatever is written in between, refreshed or not yet; each path is asked for twice, and again at the end."""
    asked: list[str] = []
    for seed, step in enumerate(steps):
        if isinstance(step, str):
            asked.append(step)
            for path in (step, step):
                _equal(kept, fresh, path)
        else:
            symbol, day, minute, length, refresh = step
            start = at(f"2024-03-0{day} 00:00") + minute * MINUTE
            sides.write(symbol, start, start + length * MINUTE, 100 + seed, refresh=refresh)
            for path in asked:
                _equal(kept, fresh, path)


def _equal(kept: TestClient[Any], fresh: TestClient[Any], path: str) -> None:
    one, other = kept.get(path), fresh.get(path)
    assert _same_text(one.text, other.text)
    # An earlier tag holds as well as the one of today, and what was streamed has a length when it is kept.
    ours, theirs = (
        {name: value for name, value in answer.headers.items() if name not in {"etag", "content-length"}}
        for answer in (one, other)
    )
    assert ours == theirs
    if "etag" in one.headers:
        assert kept.get(path, headers={"If-None-Match": other.headers["etag"]}).status_code == 304
        assert fresh.get(path, headers={"If-None-Match": one.headers["etag"]}).status_code == 304


def _same_text(one: str, other: str) -> bool:
    """The same but for the last digit of a sum: a refresh adds the same volumes up in another order."""
    ours, theirs = (re.split(r"(-?[0-9]+\.[0-9]+)", text) for text in (one, other))
    return ours[::2] == theirs[::2] and all(
        math.isclose(float(left), float(right), rel_tol=1e-12)
        for left, right in zip(ours[1::2], theirs[1::2], strict=True)
    )
