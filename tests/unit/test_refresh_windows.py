"""Which windows of a continuous aggregate are refreshed: enough, in the right places, and never too far.

Below its watermark an aggregate shows only what was refreshed, above it the bars themselves. So a window that is too
small leaves candles stale, one that jumps over something hides it for ever, and one that ends too late hides what is
still to come.
"""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from service.db.timescaledb import WEEK, windows
from service.ranges import Range, Ranges
from service.timeframes import AGGREGATED, Timeframe

T0 = datetime(2024, 3, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NOW = datetime(2024, 3, 5, 12, 7, tzinfo=UTC)

instants = st.one_of(st.integers(0, 3 * 1440), st.integers(0, 40 * 1440)).map(lambda minute: T0 + minute * MINUTE)
marks = st.none() | instants
stales = st.lists(st.tuples(instants, instants), min_size=1, max_size=5).map(Ranges).filter(len)


def buckets(timeframe: Timeframe, some: Ranges) -> list[Range]:
    """Every bucket that holds an instant of the set."""
    starts = set()
    for part in some:
        start = timeframe.floor(part.start)
        while start < part.end:
            starts.add(start)
            start += timeframe.length
    return [Range(start, start + timeframe.length) for start in sorted(starts)]


@given(st.sampled_from(AGGREGATED), stales, st.tuples(instants, instants), st.tuples(marks, marks))
def test_windows_refresh_all_that_the_watermark_hides_and_hide_nothing_more(
    timeframe: Timeframe,
    stale: Ranges,
    now_and_edge: tuple[datetime, datetime],
    watermark_and_first_bar: tuple[datetime | None, datetime | None],
) -> None:
    now, edge = now_and_edge
    mark, first = watermark_and_first_bar
    watermark = None if mark is None else timeframe.floor(mark)
    first_bar = min(filter(None, (first, stale.start)))
    found = windows(timeframe, stale, now=now, edge=edge, watermark=watermark, first_bar=first_bar)

    # Each window is one of whole buckets.
    assert all(timeframe.floor(one.start) == one.start and timeframe.floor(one.end) == one.end for one in found)

    # None reaches into the open bucket or beyond the slowest symbol's edge, but where the watermark is there already.
    allowed = max(timeframe.floor(min(now, edge)), watermark or datetime.min.replace(tzinfo=UTC))
    assert all(one.end <= allowed for one in found)

    # Whatever is stale and below the watermark that results is refreshed.
    resulting = max(filter(None, (watermark, found.end)), default=None)
    if resulting is not None:
        for bucket in buckets(timeframe, stale):
            if bucket.end <= resulting:
                assert Ranges([bucket]) - found == Ranges()

    # The watermark jumps over nothing.
    behind = watermark or first_bar
    if found.end is not None and found.end > behind:
        assert Ranges.of(timeframe.floor(behind), found.end) - found == Ranges()


def test_at_seven_past_twelve_only_ended_buckets_are_materialised() -> None:
    """A window widened over the open bucket would hide the bars that are still to come in it."""
    stale = Ranges.of(T0, NOW)
    ends = {
        timeframe: windows(timeframe, stale, now=NOW, edge=NOW, watermark=None, first_bar=T0).end
        for timeframe in AGGREGATED
    }
    assert ends == {
        Timeframe.M5: NOW.replace(minute=5),
        Timeframe.M15: NOW.replace(minute=0),
        Timeframe.H1: NOW.replace(minute=0),
        Timeframe.H4: NOW.replace(minute=0),
        Timeframe.D1: NOW.replace(hour=0, minute=0),
    }


def test_a_symbol_that_is_behind_holds_the_end_back() -> None:
    edge = NOW - timedelta(hours=2)
    found = windows(Timeframe.H1, Ranges.of(T0, NOW), now=NOW, edge=edge, watermark=None, first_bar=T0)
    assert found == Ranges.of(T0, NOW.replace(hour=10, minute=0))


def test_what_is_altered_below_the_watermark_is_refreshed_although_a_symbol_is_behind() -> None:
    stale = Ranges.of(NOW - timedelta(hours=1), NOW - timedelta(minutes=59))
    found = windows(Timeframe.M5, stale, now=NOW, edge=T0, watermark=NOW - timedelta(minutes=7), first_bar=T0)
    assert found == Ranges.of(NOW.replace(hour=11, minute=5), NOW.replace(hour=11, minute=10))


def test_bars_that_the_engine_serves_by_itself_need_no_refresh() -> None:
    """Between the watermark and the open bucket's end."""
    stale = Ranges.of(NOW - 2 * MINUTE, NOW)
    mark = NOW.replace(minute=5)
    assert windows(Timeframe.M5, stale, now=NOW, edge=NOW, watermark=mark, first_bar=T0) == Ranges()


def test_a_window_beyond_the_watermark_starts_at_it() -> None:
    """What lies between was served from the bars, and would be hidden unrefreshed."""
    mark = NOW.replace(hour=2, minute=0)
    stale = Ranges.of(NOW.replace(hour=9, minute=10), NOW.replace(hour=9, minute=12))
    found = windows(Timeframe.M5, stale, now=NOW, edge=NOW, watermark=mark, first_bar=T0)
    assert found == Ranges.of(mark, NOW.replace(hour=9, minute=15))


def test_stale_ranges_close_to_each_other_are_refreshed_as_one() -> None:
    parts = [(T0, T0 + MINUTE), (T0 + WEEK, T0 + WEEK + MINUTE), (T0 + 3 * WEEK, T0 + 3 * WEEK + MINUTE)]
    far = T0 + 9 * WEEK
    found = windows(Timeframe.H1, Ranges(parts), now=far, edge=far, watermark=far, first_bar=T0)
    hour = Timeframe.H1.length
    assert found == Ranges([(T0, T0 + WEEK + hour), (T0 + 3 * WEEK, T0 + 3 * WEEK + hour)])
