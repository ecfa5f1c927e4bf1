"""SQL in every parameter, path and header of a request for candles, and a database that is the same afterwards."""

import time
from contextlib import closing
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from litestar.testing import TestClient
from psycopg import sql

from service.db.connect import Database
from tests.integration.test_hostile_input import END, ENDS, HEADERS, MANY, ONE, RANGE, client, problem, readable

__all__ = ["client", "readable"]  # the fixtures

MARK = "injected"
INJECTIONS = [
    "'; DROP TABLE market_data.injected; --",
    "' OR '1'='1' /* injected */",
    '"; SELECT pg_sleep(3) AS injected; --',
    "') UNION SELECT injected FROM pg_sleep(3) --",
    "1; DELETE FROM market_data.sync_state /*injected*/",
    "EURUSD'||pg_sleep(3)||'injected",
    "$$injected$$; SELECT pg_sleep(3)",
    "\\'; UPDATE market_data.instruments SET active = false --injected",
    "%(symbol)s {state} %s injected",
    '1m"; DROP SCHEMA market_data CASCADE; --injected',
]
PLACES = [
    *(
        (ONE, name)
        for name in ("timeframe", "tz", "from", "to", "limit", "order", "fill", "format", "require_complete")
    ),
    *((f"{MANY}?symbols=EURUSD", name) for name in ("timeframe", "tz", "from", "format", MARK)),
    *((path, "symbols") for path in (MANY, ENDS)),
    *((END, name) for name in ("timeframe", "tz")),
    *((ENDS, name) for name in ("timeframe", "asset_type")),
]


def fingerprint(url: str) -> dict[str, object]:
    """Rows and checksum of every relation of ours, and everything else that is there."""
    with closing(psycopg.connect(url, autocommit=True)) as conn:
        names = conn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'market_data'::regnamespace AND relkind IN ('r','p','v')"
        ).fetchall()
        count = sql.SQL("SELECT count(*), md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {} AS t")
        found: dict[str, object] = {
            name: conn.execute(count.format(sql.Identifier("market_data", name))).fetchone() for (name,) in names
        }
        found["relations"] = conn.execute(
            "SELECT relnamespace::regnamespace::text, relname, relkind FROM pg_class ORDER BY 1, 2, 3"
        ).fetchall()
        found["roles"] = conn.execute("SELECT rolname, rolsuper FROM pg_roles ORDER BY 1").fetchall()
        return found


def test_sql_in_any_parameter_path_or_header_does_nothing(client: TestClient[Any], readable: Database) -> None:
    """Refused or harmless, at once; no statement ever holds it, and not one byte of the database is another one."""
    before = fingerprint(readable.url)
    requests = [
        *((path, {name: text}, {}) for path, name in PLACES for text in INJECTIONS),
        *((place.format(quote(text, safe="")), {}, {}) for text in INJECTIONS
          for place in ("/api/candles/{}", "/api/candles/{}/latest", "/api/{}", "/{}")),
        *((f"{ONE}?{RANGE}", {}, {name: text}) for name in (*HEADERS, "Host", "Cookie", "X") for text in INJECTIONS),
    ]  # fmt: skip
    answered = 0
    with closing(psycopg.connect(readable.url, autocommit=True)) as conn:
        for path, query, headers in requests:
            asked = f"{path}{'&' if '?' in path else '?'}{urlencode(query)}" if query else path
            began = time.monotonic()
            answer = client.get(asked, headers=headers)
            assert time.monotonic() - began < 2.5, asked
            if answer.status_code not in {200, 304}:
                problem(answer, 400, 404, 406)
            answered += 1
            seen = conn.execute(
                "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchall()
            assert seen
            assert not any(MARK in query or "pg_sleep" in query for (query,) in seen), (asked, seen)
    assert answered == len(requests) > 200
    assert fingerprint(readable.url) == before
