"""One-minute bars as columns: the form in which they travel from the provider's answer to the store."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

MINUTE_MS = 60_000


class Bars(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Bars of one symbol, ascending in time, no minute twice. All arrays have the shape (n,).

    Prices are unadjusted. What a source does not have (an index has no volume) is NaN, in `trades` -1;
    the store writes NULL for it.
    """

    ts: NDArray[np.int64]
    """Start of the minute, Unix ms UTC."""
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    """Units traded (of quotes: ticks); NaN where the source has none."""
    vwap: NDArray[np.float64]
    """Volume-weighted average price; NaN where the source has none."""
    trades: NDArray[np.int64]
    """Number of trades; -1 where the source has none."""

    def __len__(self) -> int:
        return len(self.ts)

    def take(self, which: NDArray[Any] | slice) -> "Bars":
        """The bars at a mask, at indexes or in a slice, in that order."""
        return Bars(**{name: getattr(self, name)[which] for name in self.__struct_fields__})

    @classmethod
    def empty(cls) -> "Bars":
        """No bars."""
        none = np.empty(0, np.float64)
        return cls(
            ts=np.empty(0, np.int64),
            open=none,
            high=none,
            low=none,
            close=none,
            volume=none,
            vwap=none,
            trades=np.empty(0, np.int64),
        )


def join(parts: Sequence[Bars]) -> Bars:
    """Several runs of bars as one, in the order given."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Bars.empty()
    return Bars(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in Bars.__struct_fields__})


class RejectedBar(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider sent and no bar can be, such as one whose high is below its low."""

    ts: int
    """Start of the minute, Unix ms UTC."""
    raw: str
    """The provider's bar as JSON text with sorted keys; the literals NaN and Infinity stand in it as strings."""
    reason: str
    """The rules that it breaks, in words, joined by "; "."""


def to_ms(at: datetime) -> int:
    """Unix milliseconds of an aware datetime."""
    return round(at.timestamp() * 1000)


def from_ms(ms: int) -> datetime:
    """Aware UTC datetime of Unix milliseconds."""
    return datetime.fromtimestamp(ms / 1000, UTC)
