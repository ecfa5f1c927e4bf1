"""Where a bar of any multiplier and timespan begins and ends: the grid to which a request's range snaps.

Minutes and hours are counted from 1970-01-01 00:00 UTC, longer spans by the calendar of the ticker's zone: weeks
begin on Sunday, and multiples of a span are counted from the one that holds 1970-01-01.
"""

from datetime import date, timedelta

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.bars import MINUTE_MS
from service.replay.hours import DAY_MS, EPOCH_DATE, NEW_YORK, local_date, midnight

LAST_DATE = date(2199, 12, 31)
LAST_MS = 7_258_118_400_000
"""The midnight after it: no instant beyond is told apart from it."""
_FIXED = {"minute": MINUTE_MS, "hour": 60 * MINUTE_MS}
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
TIMESPANS = (*_FIXED, "day", "week", *_MONTHS)
_FIRST_SUNDAY = date(1969, 12, 28)
_FAR_DAYS = 700_000
"""Edges further away than this (1,900 years) are not told apart, nor could the calendar name them all."""
_MOST = 1_000_000_000
"""A multiplier above this changes nothing: one such bar holds all of history."""


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """The length of the bars that were asked for."""

    multiplier: int
    timespan: str
    """One of TIMESPANS."""
    zone: str

    def floor(self, ms: int) -> int:
        """Start of the bar that holds an instant, Unix ms."""
        return self._edge(self._place(ms))

    def after(self, ms: int) -> int:
        """End (exclusive) of the bar that holds an instant, Unix ms."""
        return self._edge(self._place(ms) + 1)

    def starts(self, ts: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each of some ascending instants the start of its bar, Unix ms."""
        if self.timespan in _FIXED:
            length = self._step * _FIXED[self.timespan]
            return ts // length * length
        edges = [self.floor(int(ts[0]))] if len(ts) else []
        while edges and edges[-1] <= ts[-1]:
            edges.append(self.after(edges[-1]))
        return np.array(edges, np.int64)[np.searchsorted(edges, ts, side="right") - 1]

    @property
    def _step(self) -> int:
        return min(self.multiplier, _MOST)

    def _place(self, ms: int) -> int:
        """Which bar holds an instant, counted from the one of 1970."""
        if self.timespan in _FIXED:
            return ms // (_FIXED[self.timespan] * self._step)
        day = local_date(self.zone, ms)
        if self.timespan == "day":
            return (day - EPOCH_DATE).days // self._step
        if self.timespan == "week":
            return (day - _FIRST_SUNDAY).days // 7 // self._step
        months = (day.year - EPOCH_DATE.year) * 12 + day.month - 1
        return months // _MONTHS[self.timespan] // self._step

    def _edge(self, place: int) -> int:
        """Start of the bar with that number."""
        count = place * self._step
        if self.timespan in _FIXED:
            return count * _FIXED[self.timespan]
        if self.timespan in _MONTHS:
            count *= _MONTHS[self.timespan]
            if abs(count) > _FAR_DAYS // 31:
                return _beyond(count)
            years, month = divmod(count, 12)
            return midnight(self.zone, date(EPOCH_DATE.year + years, month + 1, 1))
        count *= 7 if self.timespan == "week" else 1
        if abs(count) > _FAR_DAYS:
            return _beyond(count)
        return midnight(self.zone, (_FIRST_SUNDAY if self.timespan == "week" else EPOCH_DATE) + timedelta(days=count))


def zone_of(ticker: str) -> str:
    """The zone that a ticker's dates and days mean: UTC for forex and crypto, New York for everything else."""
    return "UTC" if ticker.startswith(("C:", "X:")) else NEW_YORK


def _beyond(count: int) -> int:
    """An edge out of the calendar."""
    return _FAR_DAYS * DAY_MS if count > 0 else -_FAR_DAYS * DAY_MS
