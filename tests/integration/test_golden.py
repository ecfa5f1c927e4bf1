import gzip
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.integration.backfilling import KEY, command, environment, started

_DAY_AT_UTC_5 = """
    SELECT
        extract(epoch FROM date_bin('1 day', ts, TIMESTAMPTZ '2000-01-01 05:00+00'))::bigint * 1000 AS day,
        (array_agg(open ORDER BY ts))[1], max(high), min(low), (array_agg(close ORDER BY ts DESC))[1]
    FROM market_data.candles_1h
    WHERE symbol = 'EURUSD'
    GROUP BY day
    ORDER BY day
"""


def _published(file: Path) -> list[dict[str, Decimal]]:
    with gzip.open(file, "rt") as lines:
        names, *rows = [line.strip().split(",") for line in lines]
    return [{name: Decimal(text) for name, text in zip(names, row, strict=True) if text} for row in rows]


@contextmanager
def _announcing(*words: str, env: dict[str, str]) -> Iterator[str]:
    """A command that serves until the end of the context; yields the URL in its first line."""
    with started(*words, env=env) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield next(word for word in line.split() if word.startswith("http://"))
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=20)


def _candles(url: str, symbol: str, timeframe: str, tz: str = "UTC") -> dict[str, Any]:
    query = {"timeframe": timeframe, "tz": tz, "from": "2011-01-01", "to": "2019-01-01", "limit": "50000"}
    answer = httpx.get(f"{url}/api/candles/{symbol}", params=query, timeout=30)
    assert answer.headers["X-Data-Source"].startswith("replay (replay:csv)")
    found: dict[str, Any] = json.loads(answer.text, parse_float=Decimal, parse_int=Decimal)
    return found


def test_published_minutes_become_the_published_candles(database: str, engine: str, shared: Path) -> None:
    """Real minutes, by the commands alone: hours, days and days of UTC-05 equal the publisher's, digit by digit."""
    data = shared / "data"
    files = {"EURUSD": data / "eurusd_fxcm_bid_1m.csv.gz", "BTCUSD": data / "btcusd_coinbase_1m.csv.gz"}
    env = environment(DATABASE_URL=database, ENGINE=engine, RETENTION_1M="off", PORT="0", POLYGON_API_KEY=KEY)
    env["POLYGON_RATE_LIMIT"] = "unlimited"
    bars = [word for symbol, file in files.items() for word in ("--bars", f"{symbol}={file}")]
    with _announcing("replay", *bars, env=env) as provider:
        env["POLYGON_BASE_URL"] = provider
        done = command("backfill", *files, "--from", "2011-01-01", "--to", "2019-01-01", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Bars: 34,015 new, 0 changed" in done.stdout.splitlines()[-1]

    with _announcing("serve", env=env) as service:
        hours, days = _candles(service, "EURUSD", "1h"), _candles(service, "BTCUSD", "1d")
        zoned = _candles(service, "EURUSD", "1d", "Etc/GMT+5")
    published = _published(data / "eurusd_fxcm_bid_1h.csv.gz")
    assert [{name: candle[name] for name in "tohlc"} for candle in hours["candles"]] == published
    assert (len(published), hours["complete"], hours["missing"]) == (364, True, [])

    published = _published(data / "btcusd_coinbase_1d.csv.gz")
    assert [{name: candle[name] for name in "tohlc"} for candle in days["candles"]] == [
        {name: bar[name] for name in "tohlc"} for bar in published
    ]
    volumes = [float(bar["v"]) for bar in published]
    assert [float(candle["v"]) for candle in days["candles"]] == pytest.approx(volumes, rel=1e-9, abs=0)
    assert (len(published), days["complete"], days["missing"]) == (9, True, [])

    with psycopg.connect(database) as conn:
        rows = conn.execute(_DAY_AT_UTC_5).fetchall()
    published = _published(data / "eurusd_fxcm_bid_1d_utc-5.csv.gz")
    assert [{name: candle[name] for name in "tohlc"} for candle in zoned["candles"]] == published
    assert [tuple(float(bar[name]) for name in "tohlc") for bar in published] == rows
    assert len(rows) == 17
