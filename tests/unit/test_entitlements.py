"""What a plan gives of an asset class, recognised by sequences of answers at the edge."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.agenda import Call
from service.bars import to_ms
from service.coverage import MINUTE, Piece, minute_floor
from service.entitlements import DELIVERED_AFTER, FORGET_AFTER, Entitlement, new_york_midnight
from service.instruments import AssetType
from service.market_hours import last_open, market_of
from service.ranges import Range
from service.recognition import Recognition

SETTLE = timedelta(minutes=15)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TICKERS: dict[AssetType, str] = {"crypto": "X:BTCUSD", "forex": "C:EURUSD", "index": "I:SPX"}


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NOON = at("2024-06-12 12:00:02")
"""A Wednesday; New York's midnight was at 04:00."""
MIDNIGHT = at("2024-06-12 04:00")


def edge(start: datetime, end: datetime, asset_type: AssetType = "crypto") -> Call:
    piece = Piece(symbol="SYMBOL", ticker=TICKERS[asset_type], range=Range(start, minute_floor(end)))
    return Call(kind="edge", piece=piece, asset_type=asset_type)


class Plan:
    """A provider whose bars are this late, and what the worker learns from it."""

    def __init__(self, delay: timedelta = timedelta(), *, end_of_day: bool = False) -> None:
        self.recognition = Recognition(SETTLE)
        self._delay = delay
        self._end_of_day = end_of_day

    def asked(self, *times: datetime, asset_type: AssetType = "crypto", quiet: timedelta = timedelta()) -> Entitlement:
        """What is known after an edge at each of these times; quiet: for so long nobody traded."""
        for now in times:
            market = market_of(asset_type, TICKERS[asset_type])
            known = self.recognition.known.get(asset_type, Entitlement())
            call = self.recognition.probing(edge(now - 2 * DAY, known.target(now, SETTLE), asset_type), now)
            seen = minute_floor(now - self._delay - quiet)
            end = last_open(market, min(call.piece.range.end, new_york_midnight(now) if self._end_of_day else seen))
            newest = to_ms(end - MINUTE) if end > call.piece.range.start else None
            delayed = self._end_of_day or bool(self._delay)
            self.recognition.answered(call, newest, now, delayed=delayed)
        return self.recognition.known[asset_type]


def every(step: timedelta, start: datetime, end: datetime) -> Iterable[datetime]:
    return (start + number * step for number in range((end - start) // step))


# Recognised by answers


def test_a_bar_of_the_running_day_in_an_answer_not_marked_as_delayed_is_real_time() -> None:
    assert Plan().asked(NOON) == Entitlement(kind="real-time", seen_at=NOON)


def test_bars_that_come_late_are_recognised_with_their_delay() -> None:
    found = Plan(15 * MINUTE).asked(NOON)
    assert (found.kind, found.delay) == ("delayed", 15 * MINUTE)
    assert found.target(NOON, SETTLE) == at("2024-06-12 11:45")


def test_the_shortest_delay_seen_counts() -> None:
    """A quiet market looks later than the plan is; once a day one call asks for more than is expected."""
    plan = Plan(15 * MINUTE)
    assert plan.asked(NOON, quiet=25 * MINUTE).delay == 40 * MINUTE
    assert plan.asked(*every(MINUTE, NOON + MINUTE, NOON + HOUR)).delay <= 40 * MINUTE
    assert plan.asked(NOON + DAY, NOON + DAY + MINUTE).delay == 15 * MINUTE


@pytest.mark.parametrize(
    ("asset_type", "begin"),
    [("index", "2024-06-12 19:30:02"), ("forex", "2024-06-14 20:30:02"), ("crypto", "2024-06-12 03:30:02")],
)
def test_a_delay_is_not_underestimated_around_the_close(asset_type: AssetType, begin: str) -> None:
    """The last bars of a session are as late as any."""
    plan, start = Plan(15 * MINUTE), at(begin)
    assert plan.asked(*every(MINUTE, start, start + HOUR), asset_type=asset_type).delay == 15 * MINUTE


def test_a_day_without_a_bar_in_answers_marked_as_delayed_is_given_at_its_end() -> None:
    """An hour of open market time makes it sure."""
    plan = Plan(end_of_day=True)
    assert plan.asked(*every(MINUTE, MIDNIGHT, MIDNIGHT + HOUR)).kind == "real-time"
    assert plan.asked(MIDNIGHT + HOUR).kind == "end-of-day"


def test_just_after_midnight_an_empty_day_says_nothing() -> None:
    assert Plan(end_of_day=True).asked(MIDNIGHT + 59 * MINUTE) == Entitlement()


@pytest.mark.parametrize(
    ("asset_type", "now", "kind"),
    [
        ("forex", "2024-06-15 15:00", "real-time"),  # a Saturday
        ("index", "2024-06-12 13:29", "real-time"),  # before the open
        ("index", "2024-06-12 14:29", "real-time"),
        ("index", "2024-06-12 14:30", "end-of-day"),
        ("index", "2024-06-19 18:00", "real-time"),  # Juneteenth
        ("crypto", "2024-06-15 15:00", "end-of-day"),
    ],
)
def test_a_closed_market_says_nothing_of_the_plan(asset_type: AssetType, now: str, kind: str) -> None:
    assert Plan(end_of_day=True).asked(at(now), asset_type=asset_type).kind == kind


def test_a_class_that_gave_bars_of_a_running_day_lately_has_an_outage_not_another_plan() -> None:
    """Until that is three days ago."""
    plan = Plan(15 * MINUTE)
    plan.asked(NOON)
    for later, kind in ((HOUR, "delayed"), (FORGET_AFTER - MINUTE, "delayed"), (FORGET_AFTER + HOUR, "end-of-day")):
        call = edge(NOON, NOON + later)
        plan.recognition.answered(call, None, NOON + later, delayed=True)
        assert plan.recognition.known["crypto"].kind == kind


def test_an_empty_answer_that_is_not_marked_as_delayed_says_nothing() -> None:
    """A quiet symbol of a real-time plan."""
    recognition = Recognition(SETTLE)
    recognition.answered(edge(MIDNIGHT, NOON), None, NOON, delayed=False)
    assert recognition.known["crypto"] == Entitlement()


def test_a_better_plan_is_noticed_within_a_day() -> None:
    """One call a day asks for more than a class given at the end of the day is known to have."""
    plan = Plan(end_of_day=True)
    assert plan.asked(NOON).kind == "end-of-day"
    better = Plan()
    better.recognition = plan.recognition
    assert better.asked(NOON + DAY).kind == "real-time"


# Up to where to ask, and what to expect


def test_what_to_ask_for_follows_from_the_kind() -> None:
    late = Entitlement(kind="delayed", delay=20 * MINUTE, seen_at=NOON)
    daily = Entitlement(kind="end-of-day", seen_at=NOON)
    assert Entitlement().target(NOON, SETTLE) == at("2024-06-12 12:00")
    assert late.target(NOON, SETTLE) == at("2024-06-12 11:40")
    assert daily.target(NOON, SETTLE) == MIDNIGHT
    assert daily.target(MIDNIGHT + SETTLE - MINUTE, SETTLE) == MIDNIGHT - DAY
    assert daily.target(MIDNIGHT + SETTLE, SETTLE) == MIDNIGHT


def test_what_is_expected_leaves_the_provider_its_time() -> None:
    """Yesterday's bars may take six hours of the night."""
    daily = Entitlement(kind="end-of-day", seen_at=NOON)
    assert daily.expected(MIDNIGHT + DELIVERED_AFTER - MINUTE) == MIDNIGHT - DAY
    assert daily.expected(MIDNIGHT + DELIVERED_AFTER) == MIDNIGHT
    assert Entitlement().expected(NOON) == at("2024-06-12 12:00")


@pytest.mark.parametrize(
    ("now", "midnight"),
    [
        ("2024-03-10 04:59", "2024-03-09 05:00"),
        ("2024-03-10 06:59", "2024-03-10 05:00"),  # the clocks go forward at 07:00
        ("2024-03-10 12:00", "2024-03-10 05:00"),
        ("2024-03-11 03:59", "2024-03-10 05:00"),
        ("2024-03-11 04:00", "2024-03-11 04:00"),
        ("2024-11-03 05:30", "2024-11-03 04:00"),  # and back at 06:00
        ("2024-11-03 06:30", "2024-11-03 04:00"),
        ("2024-11-04 04:59", "2024-11-03 04:00"),
        ("2024-11-04 05:00", "2024-11-04 05:00"),
    ],
)
def test_new_york_s_midnight_moves_with_its_clocks(now: str, midnight: str) -> None:
    assert new_york_midnight(at(now)) == at(midnight)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - aware by `timezones`
def test_new_york_s_midnight_is_the_last_one_there(now: datetime) -> None:
    midnight = new_york_midnight(now)
    assert midnight.tzinfo is UTC
    assert midnight <= now < midnight + 25 * HOUR
    there = midnight.astimezone(ZoneInfo("America/New_York"))
    assert (there.hour, there.minute, there.second) == (0, 0, 0)
    assert there.date() == now.astimezone(ZoneInfo("America/New_York")).date()


# Refusals of the running day


def test_a_refused_present_is_asked_for_again_up_to_the_last_midnight() -> None:
    recognition = Recognition(SETTLE)
    again, enough = recognition.refused(edge(MIDNIGHT - DAY, NOON), NOON)
    assert again is not None
    assert enough
    assert again.end_of_day
    assert again.piece.range == Range(MIDNIGHT - DAY, MIDNIGHT)
    assert recognition.known == {}
    recognition.answered(again, to_ms(MIDNIGHT - MINUTE), NOON, delayed=False)
    assert recognition.known["crypto"] == Entitlement(kind="end-of-day", seen_at=NOON)


def test_a_refusal_of_nothing_but_the_running_day_needs_no_other_call() -> None:
    recognition = Recognition(SETTLE)
    assert recognition.refused(edge(MIDNIGHT + HOUR, NOON), NOON) == (None, True)
    assert recognition.known["crypto"].kind == "end-of-day"


def test_a_refusal_of_what_is_over_is_one_of_the_symbol() -> None:
    recognition = Recognition(SETTLE)
    assert recognition.refused(edge(MIDNIGHT - DAY, MIDNIGHT), NOON) == (None, False)
    assert recognition.known == {}


# Asking for more, and what is worth noting


def test_one_call_a_day_asks_for_more_than_the_day_before() -> None:
    recognition = Recognition(SETTLE)
    recognition.known["crypto"] = Entitlement(kind="end-of-day", seen_at=NOON)
    call = edge(MIDNIGHT - DAY, MIDNIGHT)
    assert recognition.probing(call, NOON).piece.range == Range(MIDNIGHT - DAY, minute_floor(NOON))
    assert recognition.probing(call, NOON + MINUTE) is call
    assert recognition.probing(call, NOON + DAY) is not call


def test_a_class_that_was_just_recognised_is_not_asked_for_more_on_that_day() -> None:
    """The answer that showed it, or the refusal, was one about the present."""
    for refused in (False, True):
        recognition = Recognition(SETTLE)
        call = edge(MIDNIGHT - DAY, NOON)
        if refused:
            recognition.refused(call, NOON)
            recognition.known["crypto"] = Entitlement(kind="end-of-day", seen_at=NOON)
        else:
            recognition.answered(call, None, NOON, delayed=True)
        assert recognition.known["crypto"].kind == "end-of-day"
        following = edge(MIDNIGHT - DAY, MIDNIGHT)
        assert recognition.probing(following, NOON) is following
        assert recognition.probing(following, NOON + DAY) is not following


def test_a_real_time_class_and_a_repeated_call_ask_for_no_more() -> None:
    recognition = Recognition(SETTLE)
    call = edge(MIDNIGHT - DAY, MIDNIGHT)
    assert recognition.probing(call, NOON) is call
    recognition.known["crypto"] = Entitlement(kind="end-of-day", seen_at=NOON)
    again, _ = recognition.refused(edge(MIDNIGHT - DAY, NOON), NOON)
    assert again is not None
    assert recognition.probing(again, NOON) is again


def test_what_was_recognised_is_noted_when_it_changes_and_once_an_hour() -> None:
    plan = Plan()
    plan.asked(NOON)
    assert plan.recognition.fresh().keys() == {"crypto"}
    plan.asked(NOON + HOUR)
    assert plan.recognition.fresh() == {}
    plan.asked(NOON + HOUR + MINUTE)
    assert plan.recognition.fresh().keys() == {"crypto"}


def test_a_guess_is_not_noted() -> None:
    recognition = Recognition(SETTLE)
    recognition.answered(edge(MIDNIGHT, NOON), None, NOON, delayed=False)
    assert recognition.fresh() == {}


def test_how_late_a_class_comes_is_not_learned_from_a_market_that_has_closed() -> None:
    """Its last bar would seem later by the hour."""
    plan = Plan(15 * MINUTE)
    assert plan.asked(at("2024-06-12 23:00"), asset_type="index") == Entitlement()
    assert plan.asked(at("2024-06-13 14:00"), asset_type="index").delay == 15 * MINUTE
