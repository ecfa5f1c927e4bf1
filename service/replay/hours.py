"""When a market trades, so that the replayed minutes have the nights, weekends and DST shifts of the real ones."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.bars import MINUTE_MS, to_ms
from service.provider_calls.markets import NEW_YORK
from service.zones import DAY_MS, EPOCH_DATE, midnight

DAY_MINUTES = 1440


class Hours(msgspec.Struct, frozen=True, kw_only=True):
    """The weekly trading hours of a market, in its own local time."""

    zone: str
    week: tuple[tuple[int, int] | None, ...]
    """For each weekday, Monday first: open (inclusive) and close (exclusive) in minutes of the local day."""
    holidays: bool = True
    """Whether December 25 and January 1 (local) are closed."""


def _hours(at: str) -> int:
    hour, minute = at.split(":")
    return int(hour) * 60 + int(minute)


def _weekdays(start: str, end: str) -> tuple[tuple[int, int] | None, ...]:
    return (*[(_hours(start), _hours(end))] * 5, None, None)


_ALL_DAY = (0, DAY_MINUTES)
QUOTES = Hours(
    zone=NEW_YORK,
    week=(_ALL_DAY, _ALL_DAY, _ALL_DAY, _ALL_DAY, (0, _hours("17:00")), None, (_hours("17:00"), DAY_MINUTES)),
)
"""Forex and metals: Sunday 17:00 to Friday 17:00 New York."""
US_INDEX = Hours(zone=NEW_YORK, week=_weekdays("09:30", "16:00"))
DAX = Hours(zone="Europe/Berlin", week=_weekdays("09:00", "17:30"))
STOCK = Hours(zone=NEW_YORK, week=_weekdays("04:00", "20:00"))
"""US stocks with their extended hours."""
ALWAYS = Hours(zone="UTC", week=(_ALL_DAY,) * 7, holidays=False)
"""Crypto."""


def session(hours: Hours, day: date) -> tuple[int, int] | None:
    """Open (inclusive) and close (exclusive) on a local date, Unix ms; None where it stays closed."""
    minutes = hours.week[day.weekday()]
    if minutes is None or (hours.holidays and (day.month, day.day) in {(12, 25), (1, 1)}):
        return None
    start, end = (_local(hours.zone, day, minute) for minute in minutes)
    return start, end


def is_open(hours: Hours, at: datetime) -> bool:
    """Whether the market trades at an aware instant."""
    today = session(hours, at.astimezone(ZoneInfo(hours.zone)).date())
    return today is not None and today[0] <= to_ms(at) < today[1]


def open_minutes(hours: Hours, day: int) -> NDArray[np.bool_]:
    """Whether the market trades in each of the 1440 minutes of a UTC day (counted from 1970-01-01)."""
    mask = np.zeros(DAY_MINUTES, np.bool_)
    around = EPOCH_DATE + timedelta(days=day)
    for local in (around - timedelta(days=1), around, around + timedelta(days=1)):
        found = session(hours, local)
        if found is not None:
            start, end = ((at - day * DAY_MS) // MINUTE_MS for at in found)
            mask[max(start, 0) : max(end, 0)] = True
    return mask


def _local(zone: str, day: date, minute: int) -> int:
    whole, rest = divmod(minute, DAY_MINUTES)
    if whole:
        return midnight(zone, day + timedelta(days=whole))
    return to_ms(datetime(day.year, day.month, day.day, rest // 60, rest % 60, tzinfo=ZoneInfo(zone)))
