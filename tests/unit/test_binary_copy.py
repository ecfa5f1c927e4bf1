"""Bars as the bytes of PostgreSQL's binary COPY: what the database reads back is what was written."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bars import Bars, to_ms
from service.db import binary_copy

PRICES = st.floats(allow_nan=False, allow_infinity=False)
MINUTES = st.lists(st.integers(0, 120_000_000), unique=True, max_size=12).map(sorted)
"""From 1970 to 2198."""


class Row(NamedTuple):
    """One bar; None where there is nothing."""

    prices: tuple[float, float, float, float]
    volume: float | None
    vwap: float | None
    trades: int | None


rows = st.builds(
    Row,
    prices=st.tuples(PRICES, PRICES, PRICES, PRICES),
    volume=st.none() | PRICES,
    vwap=st.none() | PRICES,
    trades=st.none() | st.integers(0, 2**63 - 1),
)


def bars(minutes: list[int], some: list[Row]) -> Bars:
    prices = np.array([row.prices for row in some], np.float64).reshape(-1, 4)
    return Bars(
        ts=np.array(minutes, np.int64) * 60_000,
        open=prices[:, 0],
        high=prices[:, 1],
        low=prices[:, 2],
        close=prices[:, 3],
        volume=np.array([math.nan if row.volume is None else row.volume for row in some], np.float64),
        vwap=np.array([math.nan if row.vwap is None else row.vwap for row in some], np.float64),
        trades=np.array([-1 if row.trades is None else row.trades for row in some], np.int64),
    )


@pytest.fixture(scope="module")
def table(plain_server: Any) -> Iterator[psycopg.Connection[Any]]:  # noqa: ANN401 - the class is the conftest's own
    """A connection with an empty table `copied`, of the columns of `candles_1m`."""
    with psycopg.connect(plain_server.url("candlewick")) as conn:
        conn.execute("""
            CREATE TEMPORARY TABLE copied (
                symbol text, ts timestamptz, open float8, high float8, low float8, close float8,
                volume float8, vwap float8, trades bigint
            )
        """)
        yield conn


def copied(conn: psycopg.Connection[Any], symbol: str, written: Bars) -> list[tuple[Any, ...]]:
    conn.execute("TRUNCATE copied")
    columns = ", ".join(binary_copy.COLUMNS)
    with conn.cursor() as cursor, cursor.copy(f"COPY copied ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(binary_copy.encode([(symbol, written)]))
    return conn.execute("SELECT * FROM copied ORDER BY ts", binary=True).fetchall()


@settings(max_examples=60)
@given(minutes=MINUTES, data=st.data(), symbol=st.text("ABCdéλ€😀.-:", min_size=1, max_size=12))
def test_every_bar_comes_back_to_the_last_bit_and_what_is_not_there_as_null(
    table: psycopg.Connection[Any], minutes: list[int], data: st.DataObject, symbol: str
) -> None:
    """Whatever mixture of columns is missing: an index has no volume, some bars of a feed have no average."""
    some = data.draw(st.lists(rows, min_size=len(minutes), max_size=len(minutes)))
    found = copied(table, symbol, bars(minutes, some))
    assert [(row[0], to_ms(row[1])) for row in found] == [(symbol, minute * 60_000) for minute in minutes]
    assert [row[2:] for row in found] == [(*row.prices, row.volume, row.vwap, row.trades) for row in some]
    signs = [math.copysign(1, row[2]) for row in found]
    assert signs == [math.copysign(1, row.prices[0]) for row in some]


def test_rows_with_the_same_columns_missing_stand_together_each_in_the_order_of_time() -> None:
    """So a batch of one kind, which is the usual one, is in the order of time as a whole."""
    whole = Row((1.0, 1.0, 1.0, 1.0), 5.0, 1.0, 3)
    index = whole._replace(volume=None, vwap=None, trades=None)
    mixed = bars([1, 2, 3, 4], [whole, index, whole, index])
    in_groups = bars([1, 3], [whole, whole]), bars([2, 4], [index, index])
    header = len(binary_copy.encode([("A", Bars.empty())])) - 2
    assert binary_copy.encode([("A", mixed)]) == (
        binary_copy.encode([("A", in_groups[0])])[:-2] + binary_copy.encode([("A", in_groups[1])])[header:]
    )


def test_no_bars_are_an_empty_stream(table: psycopg.Connection[Any]) -> None:
    assert copied(table, "EURUSD", Bars.empty()) == []
