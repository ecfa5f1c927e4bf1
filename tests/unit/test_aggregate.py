"""Arithmetic on columns of candles: what becomes of values that are absent, and where a gap may be filled."""

import math

import numpy as np

from service.aggregate import Fill, aggregate, fill
from service.bars import Bars

NAN = math.nan


def bars(ts: list[int], close: list[float], volume: list[float], vwap: list[float], trades: list[int]) -> Bars:
    prices = np.array(close, np.float64)
    return Bars(
        ts=np.array(ts, np.int64),
        open=prices - 1,
        high=prices + 2,
        low=prices - 2,
        close=prices,
        volume=np.array(volume, np.float64),
        vwap=np.array(vwap, np.float64),
        trades=np.array(trades, np.int64),
    )


def one(volume: list[float], vwap: list[float], trades: list[int]) -> Bars:
    """All of them as a single candle."""
    count = len(volume)
    many = bars(list(range(count)), [10.0 + place for place in range(count)], volume, vwap, trades)
    return aggregate(many, np.zeros(count, np.int64))


def test_the_first_opens_and_the_last_closes() -> None:
    found = one([1, 2, 3], [10, 10, 10], [1, 1, 1])
    assert (found.open[0], found.high[0], found.low[0], found.close[0]) == (9, 14, 8, 12)


def test_a_vwap_is_weighted_by_volume() -> None:
    found = one([1, 3], [10, 20], [5, 6])
    assert (found.volume[0], found.vwap[0], found.trades[0]) == (4, 17.5, 11)


def test_a_traded_bar_without_a_vwap_leaves_none() -> None:
    """One that did not trade does no harm."""
    assert math.isnan(one([1, 3], [10, NAN], [5, 6]).vwap[0])
    assert one([1, 0], [10, NAN], [5, 0]).vwap[0] == 10


def test_nothing_traded_has_no_vwap() -> None:
    found = one([0, 0], [10, 11], [0, 0])
    assert found.volume[0] == 0
    assert math.isnan(found.vwap[0])


def test_what_is_known_nowhere_stays_absent_and_what_is_known_somewhere_is_added_up() -> None:
    """As the database's sums have it."""
    nowhere = one([NAN, NAN], [NAN, NAN], [-1, -1])
    assert math.isnan(nowhere.volume[0])
    assert nowhere.trades[0] == -1
    somewhere = one([NAN, 2], [NAN, 7], [-1, 3])
    assert (somewhere.volume[0], somewhere.vwap[0], somewhere.trades[0]) == (2, 7, 3)


def test_no_bars_make_no_candle() -> None:
    assert len(aggregate(Bars.empty(), np.empty(0, np.int64))) == 0


GRID = np.arange(0, 10, dtype=np.int64)


def filled(
    at: list[int], how: Fill, doubtful: list[int], carried: float | None = None
) -> list[tuple[int, float, bool]]:
    """Start, close and whether it was put there, of candles that close at 100 + their start."""
    real = bars(at, [100.0 + start for start in at], [1] * len(at), [100] * len(at), [1] * len(at))
    found, put = fill(real, GRID, how, np.isin(GRID, doubtful), carried)
    return list(zip(found.ts.tolist(), found.close.tolist(), put.tolist(), strict=True))


def test_flat_carries_the_close_on_until_the_next_candle() -> None:
    assert filled([2, 5], "flat", [6, 7, 8, 9]) == [
        (2, 102.0, False),
        (3, 102.0, True),
        (4, 102.0, True),
        (5, 105.0, False),
    ]


def test_flat_begins_with_the_close_before_the_range() -> None:
    assert filled([2], "flat", list(range(3, 10)), 99.0) == [(0, 99.0, True), (1, 99.0, True), (2, 102.0, False)]
    assert filled([], "flat", list(range(2, 10)), 99.0) == [(0, 99.0, True), (1, 99.0, True)]
    assert filled([], "flat", []) == []


def test_flat_carries_nothing_over_what_is_missing() -> None:
    """Nor behind it, though that is covered; and a candle that may still change has no close to carry."""
    assert [start for start, _, put in filled([1, 8], "flat", [4]) if put] == [2, 3, 9]
    assert [start for start, _, put in filled([1], "flat", [1]) if put] == []
    assert [start for start, _, put in filled([5], "flat", [0], 99.0) if put] == [6, 7, 8, 9]


def test_null_stands_everywhere_and_says_nothing() -> None:
    found = filled([2], "null", [4, 5])
    assert [start for start, _, put in found if put] == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert all(math.isnan(close) for _, close, put in found if put)


def test_a_source_without_volume_has_none_in_its_gaps() -> None:
    real = bars([0], [1.0], [NAN], [NAN], [-1])
    found, _ = fill(real, GRID[:2], "flat", np.zeros(2, np.bool_), None)
    assert np.isnan(found.volume).all()
    assert found.trades.tolist() == [-1, -1]
