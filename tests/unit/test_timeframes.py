"""The six timeframes: where their buckets start, and how people may spell them."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.timeframes import AGGREGATED, EPOCH, Timeframe

instants = st.builds(
    lambda since, zone: (EPOCH + since).astimezone(zone),
    st.timedeltas(timedelta(days=1), timedelta(days=84_000)),
    st.sampled_from([UTC, timezone(timedelta(hours=5.5))]),
)


@given(instants, st.sampled_from(Timeframe))
def test_the_floor_is_the_start_of_the_bucket_that_holds_the_instant(at: datetime, timeframe: Timeframe) -> None:
    floor = timeframe.floor(at)
    assert floor <= at < floor + timeframe.length
    assert (floor - EPOCH) % timeframe.length == timedelta()


@given(instants, st.sampled_from(Timeframe))
def test_the_ceiling_is_the_instant_itself_or_the_start_of_the_next_bucket(at: datetime, timeframe: Timeframe) -> None:
    ceiling = timeframe.ceil(at)
    assert ceiling == (at if at == timeframe.floor(at) else timeframe.floor(at) + timeframe.length)


def test_a_days_bucket_starts_at_midnight_utc() -> None:
    assert Timeframe.D1.floor(datetime(2024, 2, 29, 23, 59, tzinfo=UTC)) == datetime(2024, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize(
    ("spelling", "timeframe"),
    [
        ("1m", Timeframe.M1),
        ("1min", Timeframe.M1),
        ("5m", Timeframe.M5),
        ("5min", Timeframe.M5),
        ("15m", Timeframe.M15),
        ("15min", Timeframe.M15),
        ("1h", Timeframe.H1),
        ("1hour", Timeframe.H1),
        ("60min", Timeframe.H1),
        ("4h", Timeframe.H4),
        ("4hour", Timeframe.H4),
        ("1d", Timeframe.D1),
        ("1day", Timeframe.D1),
        ("daily", Timeframe.D1),
        ("  Daily ", Timeframe.D1),
        ("1H", Timeframe.H1),
    ],
)
def test_every_usual_spelling_is_read(spelling: str, timeframe: Timeframe) -> None:
    assert Timeframe.parse(spelling) is timeframe


@pytest.mark.parametrize("spelling", ["", "2m", "1w", "h", "1 h", "m1", "1m\0"])
def test_any_other_spelling_is_refused_with_all_that_are_allowed(spelling: str) -> None:
    with pytest.raises(ValueError, match="unknown timeframe") as caught:
        Timeframe.parse(spelling)
    assert all(allowed in str(caught.value) for allowed in Timeframe.spellings())


def test_each_timeframe_is_a_whole_number_of_the_finer_one() -> None:
    """Else an aggregate of aggregates would not be the aggregate of the bars."""
    assert len(AGGREGATED) == 5
    for finer, timeframe in pairwise(Timeframe):
        assert timeframe.length % finer.length == timedelta()
        assert timeframe.length > finer.length
        assert timeframe.table == f"candles_{timeframe.value}"
