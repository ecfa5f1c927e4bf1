"""Sets of time ranges: the algebra of the coverage ledger (`wanted - covered`)."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple


class Range(NamedTuple):
    """A half-open range `[start, end)` of aware UTC instants."""

    start: datetime
    end: datetime

    @property
    def length(self) -> timedelta:
        """Duration; never negative within a `Ranges`."""
        return self.end - self.start

    def __str__(self) -> str:
        return f"[{self.start:%Y-%m-%d %H:%M}, {self.end:%Y-%m-%d %H:%M})"


class Ranges:
    """An immutable set of instants, kept as ordered ranges that neither overlap nor touch.

    Empty and reversed input ranges hold no instant and vanish. Naive datetimes are refused with ValueError.
    """

    __slots__ = ("_parts",)
    _parts: tuple[Range, ...]

    def __init__(self, parts: Iterable[tuple[datetime, datetime]] = ()) -> None:
        merged: list[Range] = []
        for start, end in sorted(_checked(parts)):
            if merged and start <= merged[-1].end:
                merged[-1] = Range(merged[-1].start, max(merged[-1].end, end))
            else:
                merged.append(Range(start, end))
        self._parts = tuple(merged)

    @classmethod
    def of(cls, start: datetime, end: datetime) -> "Ranges":
        """The set of one range."""
        return cls([(start, end)])

    def __or__(self, other: "Ranges") -> "Ranges":
        return Ranges((*self._parts, *other._parts))

    def __and__(self, other: "Ranges") -> "Ranges":
        common: list[tuple[datetime, datetime]] = []
        left, right = list(self._parts), list(other._parts)
        i = j = 0
        while i < len(left) and j < len(right):
            common.append((max(left[i].start, right[j].start), min(left[i].end, right[j].end)))
            if left[i].end <= right[j].end:
                i += 1
            else:
                j += 1
        return Ranges(common)

    def __sub__(self, other: "Ranges") -> "Ranges":
        rest: list[tuple[datetime, datetime]] = []
        holes = list(other._parts)
        j = 0
        for part in self._parts:
            start = part.start
            while j < len(holes) and holes[j].end <= start:
                j += 1
            k = j
            while k < len(holes) and holes[k].start < part.end:
                rest.append((start, holes[k].start))
                start = holes[k].end
                k += 1
            rest.append((start, part.end))
        return Ranges(rest)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    def __repr__(self) -> str:
        return f"Ranges({', '.join(map(str, self._parts))})"

    def __contains__(self, instant: datetime) -> bool:
        return any(part.start <= instant < part.end for part in self._parts)

    def holds(self, one: Range) -> bool:
        """Whether every instant of a range that is not empty is in the set."""
        return any(part.start <= one.start and one.end <= part.end for part in self._parts)

    @property
    def start(self) -> datetime | None:
        """The first instant, or None of an empty set."""
        return self._parts[0].start if self._parts else None

    @property
    def end(self) -> datetime | None:
        """The end (exclusive) of the last range, or None of an empty set."""
        return self._parts[-1].end if self._parts else None

    @property
    def length(self) -> timedelta:
        """Total duration."""
        return sum((part.length for part in self._parts), timedelta())

    def close_gaps(self, shorter_than: timedelta) -> "Ranges":
        """The same set with every inner gap shorter than the given duration filled."""
        parts = list(self._parts)
        gaps = [(a.end, b.start) for a, b in pairwise(parts) if b.start - a.end < shorter_than]
        return self | Ranges(gaps)


def _checked(parts: Iterable[tuple[datetime, datetime]]) -> Iterator[Range]:
    for start, end in parts:
        if start.tzinfo is None or end.tzinfo is None:
            raise ValueError("a range takes aware datetimes")
        if start < end:
            yield Range(start, end)
