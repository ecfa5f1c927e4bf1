"""Learns from the answers at the edge what the plan gives of each asset class, and how to ask for no more."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec

from service.agenda import Call
from service.coverage import minute_floor
from service.entitlements import Entitlement, new_york_midnight
from service.market_hours import market_of
from service.ranges import Range

NOTED_EVERY = timedelta(hours=1)


class Recognition:
    """What is known of the plan; `known` is shared with the agenda, which asks by it."""

    def __init__(self, settle: timedelta) -> None:
        self.known: dict[str, Entitlement] = {}
        self._settle = settle
        self._noted: dict[str, Entitlement] = {}
        self._probed: dict[str, datetime] = {}
        """Asset class to the day (its New York midnight) on which it was asked for more than it is known to give."""

    def load(self, known: Mapping[str, Entitlement]) -> None:
        """Go on with what the database has: what could not be noted there is learned again."""
        self.known = dict(known)
        self._noted = dict(known)

    def probing(self, call: Call, now: datetime) -> Call:
        """Once a day one symbol of a class that comes late asks for more: the plan may have changed, or be faster."""
        midnight = new_york_midnight(now)
        known = self.known.get(call.asset_type, Entitlement())
        if call.end_of_day or known.kind == "real-time" or self._probed.get(call.asset_type) == midnight:
            return call
        self._probed[call.asset_type] = midnight
        return _until(call, minute_floor(now))

    def answered(self, call: Call, newest_ms: int | None, now: datetime, *, delayed: bool) -> None:
        """An edge was answered; newest_ms: start of its last bar, None without any."""
        if call.end_of_day:
            self.known[call.asset_type] = Entitlement(kind="end-of-day", seen_at=now)
        else:
            known = self.known.get(call.asset_type, Entitlement())
            if call.piece.range.end >= minute_floor(now):
                self._probed[call.asset_type] = new_york_midnight(now)
            market = market_of(call.asset_type, call.piece.ticker)
            self.known[call.asset_type] = known.seen(market, newest_ms, now, delayed=delayed)

    def refused(self, call: Call, now: datetime) -> tuple[Call | None, bool]:
        """The present was refused: the call to make instead, if any; and whether that is all there is to it.

        What ended with the last day is asked for instead, unless that is what was refused.
        """
        start, end = call.piece.range
        midnight = new_york_midnight(now - self._settle)
        if end <= midnight:
            return None, False
        self._probed[call.asset_type] = new_york_midnight(now)
        if start >= midnight:
            self.known[call.asset_type] = Entitlement(kind="end-of-day", seen_at=now)
            return None, True
        return msgspec.structs.replace(_until(call, midnight), end_of_day=True), True

    def fresh(self) -> dict[str, Entitlement]:
        """What changed since the last call, or was confirmed long after."""
        found = {name: one for name, one in self.known.items() if _worth_noting(self._noted.get(name), one)}
        self._noted |= found
        return found


def _until(call: Call, end: datetime) -> Call:
    piece = msgspec.structs.replace(call.piece, range=Range(call.piece.range.start, end))
    return msgspec.structs.replace(call, piece=piece)


def _worth_noting(old: Entitlement | None, new: Entitlement) -> bool:
    if new.seen_at is None:
        return False
    if old is None or old.seen_at is None or (old.kind, old.delay) != (new.kind, new.delay):
        return True
    return new.seen_at - old.seen_at > NOTED_EVERY
