"""What a query parameter may be, and that anything else is refused with what it may be."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import parameters
from service.api.problems import BadQuery
from service.bars import from_ms, to_ms
from service.timeframes import Timeframe

HALF_PAST_NINE = datetime(2024, 1, 31, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-31T09:30Z",
        "2024-01-31T09:30:00.000Z",
        "2024-01-31T09:30",
        "2024-01-31 09:30",
        "2024-01-31T10:30+01:00",
        "2024-01-31T10:30 01:00",
        "2024-01-31T10:30:00 0100",
        "2024-01-31T04:30-05:00",
        "20240131T0930Z",
        " 2024-01-31T09:30 ",
        "1706693400000",
    ],
)
def test_an_instant_is_read_in_every_usual_form(text: str) -> None:
    """Naive means UTC; a `+` that nobody escaped arrives as a space."""
    found = parameters.instant("from", text)
    assert found == HALF_PAST_NINE
    assert found.tzinfo is UTC


def test_a_date_is_its_first_instant_in_utc() -> None:
    assert parameters.instant("from", "2024-01-31") == datetime(2024, 1, 31, tzinfo=UTC)


def test_zero_is_the_beginning_of_time() -> None:
    assert parameters.instant("from", "0") == datetime(1970, 1, 1, tzinfo=UTC)


def test_an_absent_instant_is_none() -> None:
    assert parameters.instant("from", None) is None


@given(st.integers(10**11, 7_258_118_399_999))
def test_unix_milliseconds_come_back_as_they_were(ms: int) -> None:
    found = parameters.instant("from", str(ms))
    assert found is not None
    assert to_ms(found) == ms
    assert from_ms(ms) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2024-02-30",
        "2024-13-01",
        "2024-01-31T25:00",
        "1706693400",
        "20240131",
        "-1",
        "1.7e12",
        "99999999999999999999",
        "9" * 5000,
        "\u0662\u0660\u0662\u0664-01-31",
        "2024-01-31\0",
        "0001-01-01T00:00+14:00",
        "9999-12-31T23:59-14:00",
        "NaN",
    ],
)
def test_what_is_no_instant_is_refused_with_the_forms_that_are(text: str) -> None:
    """Also Unix seconds and a date without dashes: read as milliseconds they would mean 1970."""
    with pytest.raises(BadQuery, match=r"from=.*is no instant: give Unix ms, a date"):
        parameters.instant("from", text)


@pytest.mark.parametrize("text", ["1969-12-31T23:59:59Z", "2200-01-01", "9999-12-31", "0001-01-01"])
def test_an_instant_outside_of_1970_to_2200_is_refused(text: str) -> None:
    with pytest.raises(BadQuery, match=r"to=.* lies outside 1970 to 2200"):
        parameters.instant("to", text)


@given(st.text(max_size=30))
def test_no_text_at_all_breaks_the_reading_of_an_instant(text: str) -> None:
    try:
        found = parameters.instant("from", text)
    except BadQuery:
        return
    assert found is not None
    assert parameters.EARLIEST <= found < parameters.LATEST


@given(st.datetimes(datetime(1970, 1, 2), datetime(2199, 12, 30), timezones=st.just(UTC)))  # noqa: DTZ001 - bounds
def test_an_instant_finer_than_a_millisecond_takes_the_next_one(at: datetime) -> None:
    """No minute starts in between, and every page of an answer can name it."""
    found = parameters.instant("from", at.isoformat())
    assert found is not None
    assert found.microsecond % 1000 == 0
    assert timedelta() <= found - at < timedelta(milliseconds=1)


def test_a_timeframe_is_one_minute_unless_given() -> None:
    assert parameters.timeframe(None) is Timeframe.M1
    assert parameters.timeframe("60MIN") is Timeframe.H1


def test_an_unknown_timeframe_is_refused_with_all_spellings() -> None:
    with pytest.raises(BadQuery, match="unknown timeframe '2h'") as caught:
        parameters.timeframe("2h")
    assert caught.value.allowed == Timeframe.spellings()


@pytest.mark.parametrize(("text", "number"), [(None, 7), ("1", 1), ("0050", 50), ("100", 100)])
def test_a_number_within_its_bounds_is_read(text: str | None, number: int) -> None:
    assert parameters.number("limit", text, default=7, least=1, most=100) == number


@pytest.mark.parametrize("text", ["0", "101", "-1", "+5", "5.0", "1e2", "", " 5", "\u0665", "5_0", "9" * 5000])
def test_any_other_number_is_refused_with_the_bounds(text: str) -> None:
    with pytest.raises(BadQuery, match="must be a whole number from 1 to 100"):
        parameters.number("limit", text, default=7, least=1, most=100)


def test_a_choice_is_one_of_its_words_and_the_first_unless_given() -> None:
    assert parameters.choice("order", None, ("asc", "desc")) == "asc"
    assert parameters.choice("order", "DESC", ("asc", "desc")) == "desc"
    with pytest.raises(BadQuery) as caught:
        parameters.choice("order", "down", ("asc", "desc"))
    assert caught.value.allowed == ("asc", "desc")


def test_a_parameter_that_the_call_does_not_have_is_refused_with_those_that_it_has() -> None:
    """A misspelt one would silently be ignored."""
    parameters.check({"from": ["0"], "to": ["1"]}, ("to", "from"))
    with pytest.raises(BadQuery, match="unknown parameter 'form'") as caught:
        parameters.check({"form": ["0"]}, ("to", "from"))
    assert caught.value.allowed == ("from", "to")


def test_a_parameter_given_twice_is_refused() -> None:
    with pytest.raises(BadQuery, match="limit is given 2 times"):
        parameters.check({"limit": ["5", "6"]}, ("limit",))
