from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from service.provider_calls.markets import zone_of
from service.replay.hours import (
    ALWAYS,
    DAX,
    DAY_MINUTES,
    QUOTES,
    STOCK,
    US_INDEX,
    Hours,
    is_open,
    open_minutes,
    session,
)
from service.replay.status import market_status
from service.zones import EPOCH_DATE


def _open_times(hours: Hours, day: date) -> tuple[str, str]:
    """First and last open minute of a UTC day."""
    minutes = np.flatnonzero(open_minutes(hours, (day - EPOCH_DATE).days))
    first, last = (timedelta(minutes=int(minute)) for minute in (minutes[0], minutes[-1]))
    return str(first)[:-3], str(last)[:-3]


@pytest.mark.parametrize(
    ("sunday", "opening"),
    [
        (date(2024, 3, 3), "22:00"),  # winter: UTC-5
        (date(2024, 3, 10), "21:00"),  # clocks went forward that morning
        (date(2024, 10, 27), "21:00"),
        (date(2024, 11, 3), "22:00"),  # clocks went back that morning
    ],
)
def test_forex_opens_on_sunday_at_17_new_york(sunday: date, opening: str) -> None:
    """Forex opens at 17:00 New York on Sunday, through both changes of the clocks."""
    assert _open_times(QUOTES, sunday) == (opening, "23:59")


def test_forex_closes_on_friday_at_17_new_york() -> None:
    """The last minute of forex is 16:59 New York on Friday, and Saturday is closed."""
    assert _open_times(QUOTES, date(2024, 1, 5)) == ("0:00", "21:59")
    assert _open_times(QUOTES, date(2024, 7, 5)) == ("0:00", "20:59")
    assert not open_minutes(QUOTES, (date(2024, 1, 6) - EPOCH_DATE).days).any()


def test_us_indices_trade_from_0930_to_1600_new_york() -> None:
    """US indices trade 09:30 to 16:00 New York, Monday to Friday: other UTC hours in winter than in summer."""
    assert _open_times(US_INDEX, date(2024, 1, 8)) == ("14:30", "20:59")
    assert _open_times(US_INDEX, date(2024, 7, 8)) == ("13:30", "19:59")
    assert not open_minutes(US_INDEX, (date(2024, 7, 7) - EPOCH_DATE).days).any()


def test_dax_trades_from_0900_to_1730_berlin() -> None:
    """The DAX trades 09:00 to 17:30 Berlin; its clocks change on other days than New York's."""
    assert _open_times(DAX, date(2024, 3, 28)) == ("8:00", "16:29")
    assert _open_times(DAX, date(2024, 4, 2)) == ("7:00", "15:29")


def test_stocks_trade_extended_hours_past_midnight_utc() -> None:
    """A winter evening of 20:00 New York lies in the next UTC day."""
    tuesday = (date(2024, 1, 9) - EPOCH_DATE).days
    minutes = np.flatnonzero(open_minutes(STOCK, tuesday))
    assert minutes[0] == 0
    assert len(minutes) == 16 * 60
    assert session(STOCK, date(2024, 1, 8)) == (1704704400000, 1704762000000)


def test_crypto_never_closes() -> None:
    """Crypto trades all minutes of all days, Christmas included."""
    assert open_minutes(ALWAYS, (date(2023, 12, 25) - EPOCH_DATE).days).sum() == DAY_MINUTES


@pytest.mark.parametrize("holiday", [date(2023, 12, 25), date(2024, 1, 1)])
def test_markets_rest_on_two_holidays(holiday: date) -> None:
    """Forex, indices and stocks have no session on December 25 and January 1 of their own zone."""
    assert all(session(hours, holiday) is None for hours in (QUOTES, US_INDEX, DAX, STOCK))


def test_a_session_includes_its_open_and_excludes_its_close() -> None:
    """09:30:00 is open, 16:00:00 is not."""
    assert is_open(US_INDEX, datetime(2024, 7, 8, 13, 30, tzinfo=UTC))
    assert not is_open(US_INDEX, datetime(2024, 7, 8, 20, 0, tzinfo=UTC))
    assert not is_open(US_INDEX, datetime(2024, 7, 7, 15, 0, tzinfo=UTC))


@pytest.mark.parametrize(
    ("at", "market", "early", "after", "fx"),
    [
        (datetime(2024, 7, 8, 9, 0, tzinfo=UTC), "extended-hours", True, False, "open"),
        (datetime(2024, 7, 8, 15, 0, tzinfo=UTC), "open", False, False, "open"),
        (datetime(2024, 7, 8, 21, 0, tzinfo=UTC), "extended-hours", False, True, "open"),
        (datetime(2024, 7, 6, 15, 0, tzinfo=UTC), "closed", False, False, "closed"),
    ],
)
def test_market_status_follows_the_hours(at: datetime, market: str, early: bool, after: bool, fx: str) -> None:  # noqa: FBT001
    """The status says open, extended-hours or closed by the same hours that the bars keep."""
    status = market_status(at)
    assert (status["market"], status["earlyHours"], status["afterHours"]) == (market, early, after)
    assert status["currencies"] == {"crypto": "open", "fx": fx}
    assert status["exchanges"]["nyse"] == market
    assert (
        status["exchanges"]["otc"] == status["indicesGroups"]["s_and_p"] == ("open" if market == "open" else "closed")
    )


def test_server_time_is_rfc_3339_in_new_york() -> None:
    """The field serverTime carries New York's offset of that day."""
    assert (
        market_status(datetime(2024, 7, 8, 15, 0, 7, 250_000, tzinfo=UTC))["serverTime"] == "2024-07-08T11:00:07-04:00"
    )


@pytest.mark.parametrize(
    ("ticker", "zone"),
    [("C:EURUSD", "UTC"), ("X:BTCUSD", "UTC"), ("I:DAX", "America/New_York"), ("AAPL", "America/New_York"),
     ("O:SPY251219C00650000", "America/New_York")],
)  # fmt: skip
def test_dates_of_a_ticker_mean_its_zone(ticker: str, zone: str) -> None:
    """UTC for forex and crypto, New York for stocks, options and indices."""
    assert zone_of(ticker) == zone
