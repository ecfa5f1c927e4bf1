"""The words of the ledger in instants: what is settled, what is missing and why, and which work follows."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import coverage
from service.coverage import EMPTY_TAIL_SETTLES, GRID, MINUTE, Ledger, Missing, plan
from service.ranges import Range, Ranges
from service.timeframes import EPOCH, Timeframe

NOW = datetime(2024, 3, 5, 12, 7, 30, tzinfo=UTC)
SETTLE = timedelta(minutes=15)
SETTLED = datetime(2024, 3, 5, 11, 52, tzinfo=UTC)
LONG_AGO = datetime(2024, 3, 4, 0, 7, tzinfo=UTC)


def ledger(symbol: str = "EURUSD", **given: Any) -> Ledger:  # noqa: ANN401 - any field
    fields = {"wanted": Ranges(), "covered": Ranges(), "unavailable": Ranges(), "first_bar": None, "last_bar": None}
    return Ledger(symbol=symbol, ticker=f"C:{symbol}", asset_type="forex", **fields | given)


# The settled edge


def test_minutes_younger_than_the_settling_time_may_still_be_revised() -> None:
    """A later bar proves nothing about them: the edge is `now - SETTLE_MINUTES`, on a whole minute."""
    assert coverage.settled_edge(NOW, NOW - 2 * MINUTE, SETTLE) == SETTLED


def test_minutes_after_the_last_bar_may_still_fill() -> None:
    """An empty tail is not settled, however old it is, until 36 hours have passed."""
    last = datetime(2024, 3, 5, 9, 0, tzinfo=UTC)
    assert coverage.settled_edge(NOW, last, SETTLE) == last + MINUTE


def test_the_last_bar_itself_is_settled_once_it_is_old_enough() -> None:
    assert coverage.settled_edge(NOW, SETTLED - MINUTE, SETTLE) == SETTLED
    assert coverage.settled_edge(NOW, SETTLED, SETTLE) == SETTLED


@pytest.mark.parametrize("last", [None, datetime(2024, 2, 1, tzinfo=UTC), LONG_AGO - MINUTE])
def test_an_empty_tail_counts_as_settled_after_36_hours(last: datetime | None) -> None:
    assert coverage.settled_edge(NOW, last, SETTLE) == LONG_AGO


def test_with_nothing_to_settle_the_edge_is_this_minute() -> None:
    assert coverage.settled_edge(NOW, NOW, timedelta()) == coverage.minute_floor(NOW)


@given(st.timedeltas(timedelta(), timedelta(days=4)), st.timedeltas(timedelta(), timedelta(days=1)))
def test_the_settled_edge_never_runs_back_nor_past_the_settling_time(later: timedelta, settle: timedelta) -> None:
    """It grows with time, with the last bar, and is a whole minute."""
    last = coverage.minute_floor(NOW) - timedelta(hours=3)
    edge = coverage.settled_edge(NOW, last, settle)
    assert edge == coverage.minute_floor(edge)
    assert edge <= max(NOW - settle, NOW - EMPTY_TAIL_SETTLES)
    assert coverage.settled_edge(NOW + later, last, settle) >= edge
    assert coverage.settled_edge(NOW, last + later, settle) >= edge


def test_a_reader_is_told_no_more_than_what_the_ledger_reached() -> None:
    """Else the minutes between two syncs would make every answer up to now incomplete."""
    reached = datetime(2024, 3, 5, 11, 0, tzinfo=UTC)
    one = ledger(covered=Ranges.of(LONG_AGO, reached), last_bar=NOW)
    assert coverage.settled_to(one, NOW, SETTLE) == reached


def test_a_reader_is_told_no_more_than_what_is_settled() -> None:
    one = ledger(covered=Ranges.of(LONG_AGO, NOW), last_bar=NOW)
    assert coverage.settled_to(one, NOW, SETTLE) == SETTLED


def test_a_ledger_that_stopped_growing_shows_after_36_hours() -> None:
    one = ledger(covered=Ranges.of(LONG_AGO - 9 * MINUTE, LONG_AGO - 5 * MINUTE), last_bar=LONG_AGO - 6 * MINUTE)
    assert coverage.settled_to(one, NOW, SETTLE) == LONG_AGO


def test_of_an_empty_ledger_the_settled_edge_itself_is_told() -> None:
    assert coverage.settled_to(ledger(), NOW, SETTLE) == LONG_AGO


# The floor


def test_the_floor_is_the_first_midnight_within_the_retention() -> None:
    assert coverage.floor(NOW, timedelta(days=90)) == datetime(2023, 12, 7, tzinfo=UTC)


def test_at_midnight_the_floor_is_exactly_the_retention_back() -> None:
    midnight = datetime(2024, 3, 5, tzinfo=UTC)
    assert coverage.floor(midnight, timedelta(days=90)) == midnight - timedelta(days=90)


def test_where_everything_is_kept_there_is_no_floor() -> None:
    assert coverage.floor(NOW, None) is None


# The work

DAY = timedelta(days=1)
days = st.integers(0, 200).map(lambda count: datetime(2023, 6, 1, tzinfo=UTC) + count * DAY)
sets = st.lists(st.tuples(days, days), max_size=4).map(Ranges)
ledgers = st.lists(
    st.builds(
        ledger,
        symbol=st.sampled_from(["EURUSD", "BTCUSD", "SPX500"]),
        wanted=sets,
        covered=sets,
        unavailable=sets,
    ),
    max_size=3,
    unique_by=lambda one: one.symbol,
)


@given(ledgers, sets)
def test_the_plan_is_exactly_what_is_wanted_and_neither_covered_nor_unavailable(
    some: list[Ledger], within: Ranges
) -> None:
    """No minute is forgotten, asked for twice, or asked for although the answer is known."""
    pieces = [piece for one in plan(some, within) for piece in one.pieces]
    for one in some:
        own = [piece.range for piece in pieces if piece.symbol == one.symbol]
        assert Ranges(own) == (one.wanted & within) - one.covered - one.unavailable
        assert sum((piece.length for piece in own), timedelta()) == Ranges(own).length
        assert all(piece.ticker == one.ticker for piece in pieces if piece.symbol == one.symbol)


@given(ledgers, sets)
def test_each_slice_is_one_step_of_the_grid_and_the_newest_comes_first(some: list[Ledger], within: Ranges) -> None:
    """All symbols of a slice stand together, in the order given: a refresh costs by time, not by symbol."""
    slices = plan(some, within)
    starts = [one.start for one in slices]
    assert starts == sorted(set(starts), reverse=True)
    for one in slices:
        assert (one.start - EPOCH) % GRID == timedelta()
        assert one.pieces
        assert all(one.start <= piece.range.start < piece.range.end <= one.start + GRID for piece in one.pieces)
        order = [ledger.symbol for ledger in some]
        assert [piece.symbol for piece in one.pieces] == sorted((piece.symbol for piece in one.pieces), key=order.index)


def test_a_slice_is_one_page_of_the_provider() -> None:
    """40,320 minutes."""
    year = Ranges.of(datetime(2023, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC))
    pieces = [piece for one in plan([ledger(wanted=year)], year) for piece in one.pieces]
    assert len(pieces) == 14
    assert max(piece.range.length for piece in pieces) == 40_320 * MINUTE


# What is missing

HOUR = timedelta(hours=1)
T0 = datetime(2024, 3, 1, tzinfo=UTC)


def hours(*pairs: tuple[int, int]) -> Ranges:
    return Ranges((T0 + start * HOUR, T0 + end * HOUR) for start, end in pairs)


def found(
    one: Ledger,
    *,
    timeframe: Timeframe = Timeframe.M1,
    floors: Mapping[Timeframe, datetime | None] | None = None,
    settled: int = 24,
    unrefreshed: Ranges | None = None,
) -> list[tuple[int, int, str]]:
    missing = coverage.missing(
        one,
        Range(T0, T0 + 24 * HOUR),
        floors={**dict.fromkeys(Timeframe), **(floors or {})},
        timeframe=timeframe,
        settled=T0 + settled * HOUR,
        unrefreshed=unrefreshed or Ranges(),
    )
    return [((gap.range.start - T0) // HOUR, (gap.range.end - T0) // HOUR, gap.reason) for gap in missing]


def test_nothing_is_missing_where_all_is_covered() -> None:
    assert found(ledger(wanted=hours((0, 24)), covered=hours((0, 24)))) == []


def test_what_nobody_asked_for_was_never_requested() -> None:
    assert found(ledger(wanted=hours((6, 24)), covered=hours((6, 24)))) == [(0, 6, "never requested")]


def test_what_is_asked_for_and_not_fetched_yet_is_pending() -> None:
    assert found(ledger(wanted=hours((0, 24)), covered=hours((0, 6), (9, 24)))) == [(6, 9, "pending")]


def test_what_the_provider_does_not_have_is_unavailable() -> None:
    one = ledger(wanted=hours((0, 24)), covered=hours((0, 6), (7, 24)), unavailable=hours((6, 7)))
    assert found(one) == [(6, 7, "unavailable")]


def test_what_can_no_longer_be_fetched_is_expired_whether_it_was_asked_for_or_not() -> None:
    floors = {Timeframe.M1: T0 + 6 * HOUR}
    assert found(ledger(), floors=floors) == [(0, 6, "expired"), (6, 24, "never requested")]
    assert found(ledger(wanted=hours((0, 24))), floors=floors) == [(0, 6, "expired"), (6, 24, "pending")]


def test_bars_below_their_floor_are_gone_even_if_they_were_fetched_once() -> None:
    floors = {Timeframe.M1: T0 + 6 * HOUR}
    assert found(ledger(covered=hours((0, 24))), floors=floors) == [(0, 6, "expired")]


def test_candles_outlive_their_bars() -> None:
    """Of a timeframe that is kept longer, what was covered once is still there below the floor of the bars."""
    floors = {Timeframe.M1: T0 + 12 * HOUR, Timeframe.H1: T0 + 6 * HOUR}
    one = ledger(covered=hours((3, 10), (12, 24)))
    assert found(one, floors=floors, timeframe=Timeframe.H1) == [(0, 6, "expired"), (10, 12, "expired")]


def test_stored_bars_that_the_aggregates_do_not_show_yet_are_pending_above_one_minute_only() -> None:
    one = ledger(wanted=hours((0, 24)), covered=hours((0, 24)))
    assert found(one, unrefreshed=hours((3, 5)), timeframe=Timeframe.H1) == [(3, 5, "pending")]
    assert found(one, unrefreshed=hours((3, 5)), timeframe=Timeframe.M1) == []


def test_what_is_not_settled_is_not_missing_yet() -> None:
    assert found(ledger(wanted=hours((0, 24)), covered=hours((0, 6))), settled=9) == [(6, 9, "pending")]
    assert found(ledger(), settled=0) == []


marks = st.integers(0, 24)
hour_sets = st.lists(st.tuples(marks, marks), max_size=4).map(lambda pairs: hours(*pairs))
floor_marks = st.none() | marks.map(lambda hour: T0 + hour * HOUR)


@given(
    st.tuples(hour_sets, hour_sets, hour_sets, hour_sets),
    st.tuples(floor_marks, floor_marks),
    st.tuples(marks, marks, marks),
    st.sampled_from([Timeframe.M1, Timeframe.H1]),
)
def test_what_is_missing_is_told_once_in_order_and_in_full(
    given_sets: tuple[Ranges, Ranges, Ranges, Ranges],
    given_floors: tuple[datetime | None, datetime | None],
    given_marks: tuple[int, int, int],
    timeframe: Timeframe,
) -> None:
    """The pieces never overlap, come in the order of time, and add up to what is asked for, settled and not served."""
    wanted, covered, unavailable, unrefreshed = given_sets
    asked = Range(T0 + min(given_marks[:2]) * HOUR, T0 + max(given_marks[:2]) * HOUR)
    settled = T0 + given_marks[2] * HOUR
    floors = {**dict.fromkeys(Timeframe), Timeframe.M1: given_floors[0], timeframe: given_floors[1]}
    one = ledger(wanted=wanted, covered=covered, unavailable=unavailable - covered)
    gaps = coverage.missing(
        one, asked, floors=floors, timeframe=timeframe, settled=settled, unrefreshed=unrefreshed & (wanted | covered)
    )
    pieces = [gap.range for gap in gaps]
    assert pieces == sorted(pieces)
    assert sum((piece.length for piece in pieces), timedelta()) == Ranges(pieces).length
    judged = Ranges.of(asked.start, min(asked.end, settled))
    floor = floors[timeframe]
    expired = Ranges() if floor is None else Ranges.of(min(T0, floor), floor)
    stale = unrefreshed & (wanted | covered) if timeframe is Timeframe.H1 else Ranges()
    assert Ranges(pieces) == (judged & expired) | (judged - covered) | (judged & stale)
    assert {gap.reason for gap in gaps} <= {"pending", "never requested", "unavailable", "expired"}
    assert all(isinstance(gap, Missing) for gap in gaps)
