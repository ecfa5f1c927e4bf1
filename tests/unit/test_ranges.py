"""Sets of ranges, held against a naive model: the set of the minutes that they hold."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ranges import Range, Ranges

DAY = datetime(2024, 3, 5, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SPAN = 40
"""Minutes of the model; few enough that ranges often touch, overlap and fill each other's gaps."""

pairs = st.lists(st.tuples(st.integers(0, SPAN), st.integers(0, SPAN)), max_size=8)


def instant(minute: int) -> datetime:
    return DAY + minute * MINUTE


def ranges(some: list[tuple[int, int]]) -> Ranges:
    return Ranges((instant(start), instant(end)) for start, end in some)


def minutes(some: list[tuple[int, int]]) -> set[int]:
    return {minute for start, end in some for minute in range(start, end)}


def held(found: Ranges) -> set[int]:
    """The model of a set, and on the way that its form is the canonical one."""
    parts = list(found)
    assert all(part.start < part.end for part in parts)
    assert all(one.end < other.start for one, other in pairwise(parts)), "they overlap or touch"
    return {minute for part in parts for minute in range((part.start - DAY) // MINUTE, (part.end - DAY) // MINUTE)}


@given(pairs)
def test_a_set_holds_the_minutes_of_its_ranges_in_one_form_only(some: list[tuple[int, int]]) -> None:
    """However a set is put together, equal sets are equal values."""
    found = ranges(some)
    assert held(found) == minutes(some)
    assert found == ranges(some[::-1])
    assert hash(found) == hash(ranges(some[::-1]))
    assert found == Ranges(found)
    assert len(found) == len(list(found))


@given(pairs, pairs)
def test_union_intersection_and_difference_are_those_of_the_minutes(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    left, right = ranges(one), ranges(other)
    assert held(left | right) == minutes(one) | minutes(other)
    assert held(left & right) == minutes(one) & minutes(other)
    assert held(left - right) == minutes(one) - minutes(other)


@given(pairs, st.integers(0, SPAN))
def test_a_set_contains_exactly_the_instants_of_its_half_open_ranges(some: list[tuple[int, int]], minute: int) -> None:
    assert (instant(minute) in ranges(some)) == (minute in minutes(some))
    assert (instant(minute) - timedelta(microseconds=1) in ranges(some)) == (minute - 1 in minutes(some))


@given(pairs, st.integers(0, SPAN - 1), st.integers(1, SPAN))
def test_a_set_holds_a_range_if_it_holds_each_of_its_minutes(
    some: list[tuple[int, int]], start: int, length: int
) -> None:
    asked = Range(instant(start), instant(start + length))
    assert ranges(some).holds(asked) == (set(range(start, start + length)) <= minutes(some))


@given(pairs)
def test_start_end_and_length_are_those_of_the_minutes(some: list[tuple[int, int]]) -> None:
    found, model = ranges(some), minutes(some)
    assert found.length == len(model) * MINUTE
    assert found.start == (instant(min(model)) if model else None)
    assert found.end == (instant(max(model) + 1) if model else None)


@given(pairs, st.integers(0, SPAN))
def test_closing_gaps_fills_every_inner_gap_that_is_shorter_and_no_other(
    some: list[tuple[int, int]], shorter: int
) -> None:
    found = ranges(some)
    expected = minutes(some)
    for one, other in pairwise(found):
        if other.start - one.end < shorter * MINUTE:
            expected |= minutes([((one.end - DAY) // MINUTE, (other.start - DAY) // MINUTE)])
    assert held(found.close_gaps(shorter_than=shorter * MINUTE)) == expected


def test_empty_and_reversed_ranges_hold_nothing() -> None:
    assert Ranges([(DAY, DAY), (DAY, DAY - MINUTE)]) == Ranges()
    assert len(Ranges.of(DAY, DAY)) == 0
    assert Ranges() != Ranges.of(DAY, DAY + MINUTE)
    assert Ranges() != ()


@pytest.mark.parametrize("pair", [(DAY.replace(tzinfo=None), DAY), (DAY, DAY.replace(tzinfo=None))])
def test_naive_datetimes_are_refused(pair: tuple[datetime, datetime]) -> None:
    with pytest.raises(ValueError, match="aware"):
        Ranges([pair])


def test_instants_of_other_zones_are_the_same_instants() -> None:
    east = timezone(timedelta(hours=9))
    assert Ranges.of(DAY.astimezone(east), (DAY + MINUTE).astimezone(east)) == Ranges.of(DAY, DAY + MINUTE)


def test_a_range_reads_as_people_write_it() -> None:
    one = Range(DAY, DAY + timedelta(hours=1, minutes=7))
    assert str(one) == "[2024-03-05 00:00, 2024-03-05 01:07)"
    assert one.length == timedelta(hours=1, minutes=7)
    assert repr(Ranges([one])) == "Ranges([2024-03-05 00:00, 2024-03-05 01:07))"
