import msgspec
import numpy as np

from service.bars import Bars
from service.replay.columns import aggregate
from service.replay.rendering import Fragment, FragmentCache, render


def test_a_warm_page_is_not_rendered_again() -> None:
    """The days of a page are made once while they stay in the cache, and again once they had to leave it."""
    made: list[int] = []

    def make(day: int) -> Fragment:
        made.append(day)
        return Fragment(ts=np.zeros(1, np.int64), text=b"x" * 92)

    cache = FragmentCache(200)
    for day in (1, 2, 1, 3, 1, 2):
        cache.get(("X", day, 0), lambda day=day: make(day))  # type: ignore[misc]
    assert made == [1, 2, 3, 2]


def test_values_that_some_bars_lack_are_left_out_of_those_only() -> None:
    """Within one series a bar may have no volume while its neighbour has."""
    ones, ts = np.ones(2), np.array([0, 60_000])
    some = np.array([np.nan, 2.5])
    bars = Bars(
        ts=ts, open=ones, high=ones, low=ones, close=ones, volume=some, vwap=ones, trades=np.array([-1, 3], np.int64)
    )
    without, full = msgspec.json.decode(b"[" + render(bars).text[:-1] + b"]")
    assert ("v" in without, "n" in without, full["v"], full["n"]) == (False, False, 2.5, 3)


def test_an_aggregate_of_unknown_volume_is_unknown() -> None:
    """A coarse bar has volume and trades only if every part has them, and vwap if every traded part has one."""
    ones, ts = np.ones(3), np.arange(3) * 60_000
    bars = Bars(
        ts=ts,
        open=ones,
        high=ones,
        low=ones,
        close=ones,
        volume=np.array([1.0, np.nan, 0.0]),
        vwap=np.array([1.0, 1.0, np.nan]),
        trades=np.array([1, -1, 0], np.int64),
    )
    both = aggregate(bars, np.zeros(3, np.int64))
    assert np.isnan(both.volume[0])
    assert both.trades[0] == -1
    quiet = aggregate(bars.take(np.array([0, 2])), np.zeros(2, np.int64))
    assert (quiet.volume[0], quiet.vwap[0], quiet.trades[0]) == (1.0, 1.0, 1)
