"""Which range somebody means, and how long it takes."""

from typing import Any

import pytest

from service.coverage import MINUTE, Ledger
from service.errors import UsageError
from service.ranges import Range, Ranges
from service.requesting import Span, range_of, seconds
from tests.integration.marketdata import at

NOW = at("2024-03-05 12:00:30")
EDGE = at("2024-03-05 12:00")


def known(covered: Ranges) -> Ledger:
    return Ledger(
        symbol="EURUSD",
        ticker="C:EURUSD",
        asset_type="forex",
        wanted=covered,
        covered=covered,
        unavailable=Ranges(),
        first_bar=None,
        last_bar=None,
    )


def meant(covered: Ranges | None = None, *, floor: Any = None, **span: Any) -> Range:  # noqa: ANN401
    return range_of(known(covered or Ranges()), Span(**span), NOW, floor=floor, backfill_days=30)


def test_without_days_or_range_it_goes_on_where_the_coverage_ends() -> None:
    end = at("2024-03-05 10:17")
    assert meant(Ranges.of(at("2024-01-01"), end)) == Range(end, EDGE)


def test_without_coverage_it_begins_with_the_history_of_a_new_symbol() -> None:
    assert meant() == Range(at("2024-02-04"), EDGE)
    assert meant(floor=at("2024-02-20")) == Range(at("2024-02-20"), EDGE)


def test_what_is_covered_up_to_now_asks_for_the_last_minute() -> None:
    assert meant(Ranges.of(at("2024-01-01"), EDGE)) == Range(EDGE - MINUTE, EDGE)


def test_days_go_back_to_a_midnight() -> None:
    assert meant(days=2) == Range(at("2024-03-03"), EDGE)
    assert meant(days=36_500).start == at("1970-01-01")


def test_a_range_is_widened_to_whole_minutes_and_ends_now_at_the_latest() -> None:
    assert meant(start=at("2024-03-01 10:00:40"), end=at("2024-03-01 10:00:50")) == Range(
        at("2024-03-01 10:00"), at("2024-03-01 10:01")
    )
    assert meant(start=at("2024-03-01"), end=at("2025-01-01")) == Range(at("2024-03-01"), EDGE)
    assert meant(start=at("2024-03-01")) == Range(at("2024-03-01"), EDGE)


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ({"start": at("2024-03-05 12:00:10")}, "lies in the future"),
        ({"start": at("2030-01-01"), "end": at("2031-01-01")}, "lies in the future"),
        ({"start": at("2024-03-04"), "end": at("2024-03-03")}, "must lie before"),
        ({"start": at("2024-02-19 23:59")}, "RETENTION_1M"),
        ({"days": 40}, "below 2024-02-20"),
    ],
)
def test_what_cannot_be_had_is_refused(span: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        meant(floor=at("2024-02-20"), **span)


def test_days_that_just_fit_into_the_retention_are_meant_to_fit() -> None:
    assert meant(days=14, floor=at("2024-02-21")) == Range(at("2024-02-21"), EDGE)
    assert meant(days=14, floor=at("2024-02-20")).start == at("2024-02-20")


@pytest.mark.parametrize(
    ("requests", "rate", "expected"), [(0, 5, 0), (1, 5, 0), (5, 5, 0), (6, 5, 60), (45, 5, 480), (900, None, 0)]
)
def test_calls_take_as_long_as_the_rate_makes_them(requests: int, rate: int | None, expected: int) -> None:
    assert seconds(requests, rate) == expected
