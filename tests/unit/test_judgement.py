"""How far a symbol is: lag in open market time, states, totals; and why all is not well."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.coverage import MINUTE
from service.entitlements import Entitlement
from service.heartbeat import Worker
from service.instruments import AssetType
from service.judgement import (
    STATES,
    Facts,
    Outstanding,
    expected_lag,
    horizon,
    judged,
    lags,
    older_until,
    totals,
)
from service.market_hours import market_of, open_time
from service.ranges import Ranges
from service.reasons import Late, alive, reasons
from tests.integration.marketdata import SETTLE, at

NOW = at("2024-03-05 12:00")
"""A Tuesday noon: forex and crypto are open, stocks in their early hours, SPX is closed."""
SINCE = at("2024-02-20 00:00")
ALERT = timedelta(minutes=30)


def fact(symbol: str = "EURUSD", asset_type: AssetType = "forex", **changes: Any) -> Facts:  # noqa: ANN401
    """A symbol that is up to date, unless changed."""
    prefix = {"forex": "C:", "commodity": "C:", "crypto": "X:", "index": "I:", "stock": ""}[asset_type]
    usual = Facts(
        symbol=symbol,
        ticker=f"{prefix}{symbol}",
        name=symbol,
        asset_type=asset_type,
        active=True,
        status="ok",
        first_bar=SINCE,
        last_bar=NOW - MINUTE,
        covered_end=NOW - SETTLE,
        tracked_from=SINCE,
        tracked_since=SINCE,
        asked_to=NOW,
        last_sync_at=NOW,
        last_sync_rows=3,
        last_sync_changed=1,
        error=None,
        next_attempt_at=None,
    )
    return msgspec.structs.replace(usual, **changes)


def lag(*facts: Facts, plan: dict[str, Entitlement] | None = None, now: Any = NOW) -> timedelta | None:  # noqa: ANN401
    """The lag of the first of these."""
    return lags(facts, plan or {}, now)[facts[0].symbol]


# Lag


def test_a_symbol_with_the_last_minute_has_no_lag() -> None:
    assert lag(fact()) == timedelta()


def test_lag_is_the_open_time_since_the_last_bar() -> None:
    one = fact(last_bar=NOW - 41 * MINUTE, covered_end=NOW - 60 * MINUTE, asked_to=NOW - 40 * MINUTE)
    assert lag(one) == timedelta(minutes=40)


def test_closed_time_is_no_lag() -> None:
    """All of a week-end, and then the minutes since the open."""
    friday = at("2024-03-01 22:00")
    closed = fact(last_bar=friday - MINUTE, covered_end=friday, asked_to=friday)
    assert lag(closed, now=at("2024-03-03 21:59")) == timedelta()
    assert lag(closed, now=at("2024-03-03 22:07")) == timedelta(minutes=7)


def test_what_was_due_before_a_worker_kept_it_is_no_lag() -> None:
    assert lag(fact(last_bar=None, covered_end=None, asked_to=None, tracked_since=NOW - 5 * MINUTE)) == 5 * MINUTE


def test_a_symbol_that_no_worker_keeps_has_no_lag_at_all() -> None:
    assert lag(fact(tracked_since=None, tracked_from=None)) is None
    assert lag(fact(active=False)) is None


def test_a_quiet_symbol_is_as_far_as_it_was_asked_for_while_its_class_delivers() -> None:
    """Nobody traded it for two hours; others of its class were."""
    quiet = fact("NZDCHF", last_bar=NOW - timedelta(hours=2), covered_end=NOW - timedelta(hours=2))
    assert lag(quiet, fact("EURUSD")) == timedelta()
    assert lag(quiet, fact("BTCUSD", "crypto")) == timedelta(hours=2) - MINUTE
    assert lag(quiet, fact("EURUSD", active=False)) == timedelta(hours=2) - MINUTE


def test_a_symbol_that_is_not_answered_is_behind_although_its_class_delivers() -> None:
    failing = fact("NZDCHF", last_bar=NOW - 61 * MINUTE, covered_end=NOW - 80 * MINUTE, asked_to=NOW - 60 * MINUTE)
    assert lag(failing, fact("EURUSD")) == timedelta(hours=1)


def test_an_end_of_day_plan_is_healthy_when_yesterday_is_there() -> None:
    plan = {"stock": Entitlement(kind="end-of-day", seen_at=NOW)}
    yesterday = fact("AAPL", "stock", last_bar=at("2024-03-05 00:59"), covered_end=at("2024-03-05 01:00"))
    before = fact("AAPL", "stock", last_bar=at("2024-03-02 00:59"), covered_end=at("2024-03-02 01:00"))
    assert lag(msgspec.structs.replace(yesterday, asked_to=at("2024-03-05 05:00")), plan=plan) == timedelta()
    monday = timedelta(hours=16)
    assert lag(msgspec.structs.replace(before, asked_to=at("2024-03-04 05:00")), plan=plan) == monday


def test_what_a_plan_delays_is_no_lag() -> None:
    plan = {"forex": Entitlement(kind="delayed", delay=timedelta(minutes=15), seen_at=NOW)}
    late = fact(last_bar=NOW - 20 * MINUTE, covered_end=NOW - 30 * MINUTE, asked_to=NOW - 15 * MINUTE)
    assert lag(late, plan=plan) == timedelta(minutes=4)


@given(
    last_bar=st.integers(-20_000, -1),
    covered=st.integers(-20_000, -1),
    asked=st.integers(-20_000, 0),
    since=st.integers(-20_000, 0),
    other=st.integers(-20_000, 0),
)
def test_lag_is_never_negative_nor_more_than_the_open_time_since_a_worker_began(
    last_bar: int, covered: int, asked: int, since: int, other: int
) -> None:
    """Whatever stands in the database."""
    one = fact(
        last_bar=NOW + last_bar * MINUTE,
        covered_end=NOW + covered * MINUTE,
        asked_to=NOW + asked * MINUTE,
        tracked_since=NOW + since * MINUTE,
    )
    found = lag(one, fact("GBPUSD", last_bar=NOW + other * MINUTE))
    assert found is not None
    assert timedelta() <= found <= open_time(market_of("forex", "C:EURUSD"), NOW + since * MINUTE, NOW)


# States


older = Outstanding(missing=timedelta(days=2), older=Ranges.of(SINCE, SINCE + timedelta(days=2)))
edge = Outstanding(missing=7 * MINUTE, older=Ranges())


@pytest.mark.parametrize(
    ("changes", "behind", "outstanding", "state"),
    [
        ({}, timedelta(), None, "ok"),
        ({}, timedelta(), edge, "ok"),
        ({}, None, None, "ok"),
        ({}, ALERT, None, "ok"),
        ({}, ALERT + MINUTE, None, "behind"),
        ({}, ALERT + MINUTE, older, "behind"),
        ({}, timedelta(), older, "backfilling"),
        ({"status": "new", "last_sync_at": None}, timedelta(), older, "new"),
        ({"status": "failed"}, timedelta(), older, "failed"),
        ({"status": "failed", "last_sync_at": None}, None, None, "failed"),
        ({"status": "refused"}, ALERT * 9, None, "refused"),
        ({"active": False, "status": "failed"}, None, older, "inactive"),
    ],
)
def test_a_state_is_one_word(
    changes: dict[str, Any], behind: timedelta | None, outstanding: Outstanding | None, state: str
) -> None:
    assert judged(fact(**changes), behind, outstanding, NOW, ALERT).state == state


def test_a_status_counts_rows_in_two_kinds_and_minutes_in_whole_ones() -> None:
    found = judged(fact(last_sync_rows=5, last_sync_changed=2), 90 * MINUTE, edge, NOW, ALERT)
    assert (found.rows_new, found.rows_changed, found.lag_seconds, found.missing_minutes) == (3, 2, 5400, 7)
    never = judged(fact(last_sync_rows=None, last_sync_changed=None), None, None, NOW, ALERT)
    assert (never.rows_new, never.rows_changed, never.lag_seconds, never.missing_minutes) == (None, None, None, 0)
    assert (found.market_open, judged(fact("SPX", "index"), None, None, NOW, ALERT).market_open) == (True, False)


def test_closed_time_at_the_end_is_not_missing_before_the_next_open() -> None:
    friday, sunday = at("2024-03-01 22:00"), at("2024-03-03 20:00")
    one = fact(last_bar=friday - MINUTE, covered_end=friday, asked_to=friday)
    assert horizon(one, sunday, SETTLE) == friday
    assert horizon(msgspec.structs.replace(one, tracked_from=None), sunday, SETTLE) == sunday - timedelta(hours=36)
    assert horizon(fact(), NOW, SETTLE) == NOW - SETTLE


def test_older_work_is_what_no_call_at_the_edge_brings() -> None:
    assert older_until(fact(), NOW, SETTLE) == NOW - SETTLE
    gone = fact(covered_end=NOW - timedelta(days=60), tracked_from=NOW - timedelta(days=90))
    assert older_until(gone, NOW, SETTLE) == NOW - timedelta(days=28)
    assert older_until(fact(covered_end=None, last_bar=None), NOW, SETTLE) == NOW - timedelta(hours=36)


# Totals


def test_totals_count_every_state_and_name_the_worst() -> None:
    facts = [fact("EURUSD"), fact("GBPUSD"), fact("SPX", "index"), fact("USDJPY", active=False)]
    behind = {"EURUSD": 3 * MINUTE, "GBPUSD": 50 * MINUTE, "SPX": None, "USDJPY": None}
    outstanding = {"EURUSD": edge, "USDJPY": older}
    found = [judged(one, behind[one.symbol], outstanding.get(one.symbol), NOW, ALERT) for one in facts]
    total = totals(found, outstanding, 5)
    assert (total.symbols, total.active, total.missing_minutes) == (4, 3, 7 + 2880)
    assert (total.worst_lag_seconds, total.worst_symbol) == (3000, "GBPUSD")
    assert {state: count for state, count in total.states.items() if count} == {"ok": 2, "behind": 1, "inactive": 1}
    assert set(total.states) == set(STATES)
    assert (total.requests, total.seconds) == (1, 20)


def test_without_a_lag_nobody_is_the_worst() -> None:
    total = totals([judged(fact(), None, None, NOW, ALERT)], {}, None)
    assert (total.worst_lag_seconds, total.worst_symbol, total.requests, total.seconds) == (None, None, 0, 0)


@pytest.mark.parametrize(
    ("open_now", "rate", "waits", "seconds"),
    [(45, 5, False, 540), (45, 5, True, 675), (45, 100, False, 27), (45, None, True, 0), (0, 5, True, 0)],
)
def test_a_rate_makes_the_edge_as_late_as_it_takes_to_go_round(
    open_now: int,
    rate: int | None,
    waits: bool,  # noqa: FBT001
    seconds: int,
) -> None:
    assert expected_lag(open_now, rate, older=waits) == seconds


def test_older_work_gets_what_the_edge_leaves_a_fifth_at_least() -> None:
    open_ones = [judged(fact(f"X{number}"), None, None, NOW, ALERT) for number in range(20)]
    many = {"X0": Outstanding(missing=MINUTE, older=Ranges.of(NOW - timedelta(days=28 * 20), NOW))}
    assert totals(open_ones, many, 100).requests == 21
    assert totals(open_ones, many, 100).seconds == round(60 * 21 / 80)
    assert totals(open_ones, many, 5).seconds == 60 * 21


# Reasons


def worker(**changes: Any) -> Worker:  # noqa: ANN401
    usual = Worker(
        host="here",
        pid=7,
        started_at=SINCE,
        beat_at=NOW - timedelta(seconds=5),
        provider="ok",
        provider_message=None,
        provider_since=None,
        paused_until=None,
        clock_ahead=timedelta(seconds=-3),
    )
    return msgspec.structs.replace(usual, **changes)


def why(one: Worker | None, late: list[Late] | None = None, expected: timedelta = timedelta()) -> list[str]:
    return reasons(one, late or [], NOW, alert=ALERT, expected=expected)


def test_all_is_well_without_a_reason() -> None:
    assert why(worker()) == []


def test_without_a_worker_it_is_said_how_to_start_one() -> None:
    (never,) = why(None)
    assert never.startswith("no worker is running, and none ever was")
    assert "candlewick worker" in never
    assert "ENABLE_SYNC_SCHEDULER=true" in never
    (gone,) = why(worker(beat_at=NOW - timedelta(seconds=31), provider="unauthorized"))
    assert "process 7 on here" in gone
    assert "2024-03-05 11:59:29 UTC" in gone


def test_a_worker_that_spoke_half_a_minute_ago_lives() -> None:
    """Also one whose clock is ahead of ours."""
    assert alive(worker(beat_at=NOW - timedelta(seconds=30)), NOW)
    assert alive(worker(beat_at=NOW + timedelta(hours=1)), NOW)
    assert not alive(worker(beat_at=NOW - timedelta(seconds=31)), NOW)
    assert not alive(None, NOW)


def test_a_refused_key_is_named_with_its_variable() -> None:
    (reason,) = why(worker(provider="unauthorized", provider_since=SINCE, provider_message="Unknown API Key"))
    assert "POLYGON_API_KEY" in reason
    assert "since 2024-02-20 00:00:00 UTC" in reason
    assert "Unknown API Key" in reason


def test_a_provider_out_of_reach_is_named_with_its_last_words() -> None:
    (reason,) = why(worker(provider="unreachable", provider_since=SINCE, provider_message="HTTP 502"))
    assert "cannot be reached since 2024-02-20" in reason
    assert "HTTP 502" in reason


@pytest.mark.parametrize(("seconds", "words"), [(61, "61 s ahead of"), (-90, "90 s behind"), (60, None), (-60, None)])
def test_a_clock_that_is_off_by_more_than_a_minute_is_a_reason(seconds: int, words: str | None) -> None:
    found = why(worker(clock_ahead=timedelta(seconds=seconds)))
    assert len(found) == (words is not None)
    assert (words or "") in "".join(found)
    assert why(worker(clock_ahead=None)) == []


def test_the_ten_worst_are_named_and_all_are_counted() -> None:
    late = [Late(symbol=f"S{number}", lag=(90 - number) * MINUTE, trouble=None) for number in range(12)]
    (reason,) = why(worker(), late)
    assert reason.startswith("12 symbols are late by more than LAG_ALERT (30 minutes): S0 90 min, S1 89 min")
    assert "S9 81 min, ..." in reason
    assert "S10" not in reason
    (single,) = why(worker(), [Late(symbol="SPX", lag=45 * MINUTE, trouble="not entitled")])
    assert single == "1 symbol is late by more than LAG_ALERT (30 minutes): SPX 45 min (not entitled)"


def test_a_rate_that_cannot_be_in_time_is_said_to_be_the_reason() -> None:
    (reason,) = why(worker(), [Late(symbol="SPX", lag=45 * MINUTE, trouble=None)], 50 * MINUTE)
    assert "POLYGON_RATE_LIMIT alone makes the edge 50 minutes late" in reason
