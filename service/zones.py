"""What the clocks of a time zone show: where its days begin, when its offset changes, how it is called.

A wall-clock time is written as the instant that has the same name in UTC: ms since 1970-01-01 00:00 on the zone's own
clock. Offsets are followed from 1900 to 2200; outside, a clock is taken to keep the offset that it has there.
"""

from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.timeframes import EPOCH

DAY_MS = 86_400_000
EPOCH_DATE = date(1970, 1, 1)
NEVER = 1 << 62
"""Later than every instant in Unix ms; its negative is earlier."""
_YEAR_MS = 31_556_952_000
_FIRST_YEAR, _LAST_YEAR = 1900, 2199
_NO_ZONES = {"Factory", "localtime", "posixrules"}
"""Files among the zones that say nothing about a place."""


class Clock(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The offsets of a zone over some years. All arrays have the shape (n,): an item for each stretch of one offset."""

    since: NDArray[np.int64]
    """Start of the stretch, Unix ms; the first is open (-NEVER)."""
    until: NDArray[np.int64]
    """Its end (exclusive), Unix ms; the last is open (NEVER)."""
    offset: NDArray[np.int64]
    """Wall clock minus UTC, ms."""
    passed: NDArray[np.int64]
    """By its end the clock has shown, or jumped over, every wall-clock time before this."""

    def highest(self, ts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The latest wall-clock time shown up to and including each instant: clocks that go back do not lower it."""
        which = np.searchsorted(self.since, ts, side="right") - 1
        before = np.append(-NEVER, self.passed[:-1])
        walls: NDArray[np.int64] = np.maximum(before[which] - 1, ts + self.offset[which])
        return walls

    def first(self, walls: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first instant to show each wall-clock time, or the jump that skips it, Unix ms."""
        which = np.searchsorted(self.passed, walls, side="right")
        instants: NDArray[np.int64] = np.maximum(self.since[which], walls - self.offset[which])
        return instants


def clock(zone: str, start: int, end: int) -> Clock:
    """The clock of an IANA zone, right for the instants of `[start, end]` (Unix ms) and half a year around them."""
    first, last = (min(max(1970 + ms // _YEAR_MS, _FIRST_YEAR), _LAST_YEAR) for ms in (start, end))
    return _clock(zone, max(first - 1, _FIRST_YEAR), min(last + 1, _LAST_YEAR))


def midnight(zone: str, day: date) -> int:
    """Start of a local day, Unix ms: the first instant that shows its 00:00, or the jump that skips it."""
    wall = (day - EPOCH_DATE).days * DAY_MS
    return int(clock(zone, wall, wall).first(np.array([wall], np.int64))[0])


def local_date(zone: str, ms: int) -> date:
    """The date that the clocks of a zone show at an instant in Unix ms."""
    return datetime.fromtimestamp(ms // 1000, UTC).astimezone(ZoneInfo(zone)).date()


def zone_named(text: str) -> str:
    """The IANA name of a zone, however its letters are cased; ValueError names the nearest ones."""
    names = _names()
    wanted = text.strip().lower()
    if wanted in names:
        return names[wanted]
    places = {name.rpartition("/")[2]: exact for name, exact in names.items()} | names
    near = get_close_matches(wanted[:64].replace(" ", "_"), places, n=5, cutoff=0.7)
    hint = " or ".join(list(dict.fromkeys(places[name] for name in near))[:3])
    advice = f"did you mean {hint}?" if hint else "give an IANA name such as UTC, America/New_York, Europe/London"
    raise ValueError(f"unknown time zone {text[:64]!r}: {advice}")


@lru_cache
def _names() -> dict[str, str]:
    """Every zone by its name in small letters."""
    return {name.lower(): name for name in sorted(available_timezones() - _NO_ZONES)}


@lru_cache(maxsize=1024)
def _clock(zone: str, first: int, last: int) -> Clock:
    """The clock over whole years, the last one included."""
    changes = [] if zone == "UTC" else [one for year in range(first, last + 1) for one in _changes(zone, year)]
    since = np.array([-NEVER, *(second * 1000 for second, _ in changes)], np.int64)
    until = np.append(since[1:], NEVER)
    seconds = [_offset(ZoneInfo(zone), _new_year(first)), *(offset for _, offset in changes)]
    offset = np.array(seconds, np.int64) * 1000
    return Clock(since=since, until=until, offset=offset, passed=np.maximum.accumulate(until + offset))


@lru_cache(maxsize=16_384)
def _changes(zone: str, year: int) -> tuple[tuple[int, int], ...]:
    """When the offset changes in a UTC year, its start excluded and its end included, and to what; both in seconds."""
    there, before, found = ZoneInfo(zone), _new_year(year), []
    known = _offset(there, before)
    for after in range(before + 86_400, _new_year(year + 1) + 1, 86_400):
        offset = _offset(there, after)
        if offset != known:
            found.append((_change(there, after - 86_400, after), offset))
            known = offset
    return tuple(found)


def _change(there: ZoneInfo, before: int, after: int) -> int:
    """The second at which the offset changes to the one of `after`."""
    offset = _offset(there, after)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(there, middle) == offset:
            after = middle
        else:
            before = middle
    return after


def _offset(there: ZoneInfo, second: int) -> int:
    """Wall clock minus UTC at a Unix second, in seconds."""
    offset = (EPOCH + timedelta(seconds=second)).astimezone(there).utcoffset() or timedelta()
    return offset // timedelta(seconds=1)


def _new_year(year: int) -> int:
    """The Unix second at which a UTC year begins."""
    return (date(year, 1, 1) - EPOCH_DATE).days * 86_400
