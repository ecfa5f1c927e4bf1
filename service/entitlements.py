"""What the provider's plan gives of an asset class, recognised by its answers: nobody has to configure it."""

from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec

from service.bars import from_ms
from service.coverage import MINUTE, minute_floor
from service.market_hours import Market, is_open, open_time

Kind = Literal["real-time", "delayed", "end-of-day"]
NEW_YORK = ZoneInfo("America/New_York")
SURE_AFTER = timedelta(minutes=60)
"""So much open time of a day without a bar, and answers marked as delayed, mean that the day is given at its end."""
FORGET_AFTER = timedelta(days=3)
"""A class that gave bars of the running day so lately is not taken for one given at the end of the day."""
DELIVERED_AFTER = timedelta(hours=6)
"""How long after New York's midnight the bars of the day before may take to be there."""


class Entitlement(msgspec.Struct, frozen=True, kw_only=True):
    """How late an asset class comes."""

    kind: Kind = "real-time"
    delay: timedelta = timedelta()
    """How late the newest bar of a delayed class is."""
    seen_at: datetime | None = None
    """When an answer last showed it; None: never, and `kind` is a guess."""

    def target(self, now: datetime, settle: timedelta) -> datetime:
        """Up to where (exclusive) it makes sense to ask now."""
        match self.kind:
            case "real-time":
                return minute_floor(now)
            case "delayed":
                return minute_floor(now - self.delay)
            case "end-of-day":
                return new_york_midnight(now - settle)

    def expected(self, now: datetime) -> datetime:
        """Up to where (exclusive) bars should be there by now, if nothing is late."""
        return new_york_midnight(now - DELIVERED_AFTER) if self.kind == "end-of-day" else self.target(now, timedelta())

    def seen(self, market: Market, newest_ms: int | None, now: datetime, *, delayed: bool) -> "Entitlement":
        """What is known after an answer at the edge whose newest bar starts at `newest_ms` (None: no bar).

        delayed: whether the provider marked the answer so.
        """
        midnight = new_york_midnight(now)
        newest = None if newest_ms is None else from_ms(newest_ms) + MINUTE
        if newest is not None and newest > midnight:
            if not delayed:
                return Entitlement(kind="real-time", seen_at=now)
            # Never less than the delay, but more where nobody traded: the least counts.
            observed = minute_floor(now) - newest
            if self.kind == "delayed":
                return Entitlement(kind="delayed", delay=min(self.delay, observed), seen_at=now)
            return Entitlement(kind="delayed", delay=observed, seen_at=now) if is_open(market, now) else self
        recent = self.seen_at is not None and self.kind != "end-of-day" and now - self.seen_at < FORGET_AFTER
        if delayed and not recent and open_time(market, midnight, minute_floor(now)) >= SURE_AFTER:
            return Entitlement(kind="end-of-day", seen_at=now)
        return self


def new_york_midnight(at: datetime) -> datetime:
    """The last midnight of New York at or before an instant, in UTC."""
    local = at.astimezone(NEW_YORK)
    return local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0).astimezone(at.tzinfo)
