"""The six timeframes, their spellings, and where their buckets start."""

from datetime import UTC, datetime, timedelta
from enum import Enum

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc_now() -> datetime:
    """The wall clock, aware UTC."""
    return datetime.now(UTC)


class Timeframe(Enum):
    """A candle's length. Buckets start at multiples of it from 1970-01-01 00:00 UTC.

    The value is the name in the API; the relation that serves it is `market_data.candles_<value>`.
    """

    M1 = "1m"
    M5 = "5m"
    M15 = "15m"
    H1 = "1h"
    H4 = "4h"
    D1 = "1d"

    @property
    def length(self) -> timedelta:
        """Length of one bucket."""
        return _LENGTHS[self]

    @property
    def table(self) -> str:
        """Name of the table or continuous aggregate in the schema `market_data`."""
        return f"candles_{self.value}"

    @property
    def finer(self) -> "Timeframe | None":
        """The timeframe that this one is aggregated from; None for one minute."""
        order = list(Timeframe)
        place = order.index(self)
        return order[place - 1] if place else None

    def floor(self, at: datetime) -> datetime:
        """Start of the bucket that holds `at` (aware)."""
        return at - (at - EPOCH) % self.length

    def ceil(self, at: datetime) -> datetime:
        """`at` itself if a bucket starts there, else the start of the next one."""
        return at + (EPOCH - at) % self.length

    @staticmethod
    def spellings() -> tuple[str, ...]:
        """Everything that `parse` accepts."""
        return tuple(_SPELLINGS)

    @classmethod
    def parse(cls, text: str) -> "Timeframe":
        """Read any accepted spelling (`1h`, `60min`, `1hour`, ...); ValueError lists what is allowed."""
        try:
            return _SPELLINGS[text.strip().lower()]
        except KeyError:
            raise ValueError(f"unknown timeframe {text!r}: allowed are {', '.join(_SPELLINGS)}") from None


_LENGTHS = {
    Timeframe.M1: timedelta(minutes=1),
    Timeframe.M5: timedelta(minutes=5),
    Timeframe.M15: timedelta(minutes=15),
    Timeframe.H1: timedelta(hours=1),
    Timeframe.H4: timedelta(hours=4),
    Timeframe.D1: timedelta(days=1),
}
_SPELLINGS = {timeframe.value: timeframe for timeframe in Timeframe} | {
    "1min": Timeframe.M1,
    "5min": Timeframe.M5,
    "15min": Timeframe.M15,
    "60min": Timeframe.H1,
    "1hour": Timeframe.H1,
    "4hour": Timeframe.H4,
    "1day": Timeframe.D1,
    "daily": Timeframe.D1,
}
AGGREGATED = tuple(Timeframe)[1:]
"""The timeframes that the database derives, finest first: the order in which they are refreshed."""
