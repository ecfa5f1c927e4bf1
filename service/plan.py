"""What a backfill is going to do and what it did, for those who watch it."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from service import coverage
from service.coverage import Ledger, Piece, Slice
from service.errors import UsageError
from service.ranges import Range, Ranges
from service.store import Stored
from service.timeframes import EPOCH, Timeframe

OPEN_SHARE = {"forex": 5 / 7, "commodity": 5 / 7, "index": 0.19, "crypto": 1.0, "stock": 0.48}
"""Share of all minutes in which a market of this type has bars; for the estimate only."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a backfill is going to do."""

    asked: Range
    ledgers: tuple[Ledger, ...]
    slices: tuple[Slice, ...]
    rate_limit: int | None
    """Calls a minute; None: unlimited."""

    @property
    def requests(self) -> int:
        """Calls without repetitions: one a piece."""
        return sum(len(one.pieces) for one in self.slices)

    @property
    def bars(self) -> int:
        """Roughly how many bars will come."""
        share = {one.symbol: OPEN_SHARE[one.asset_type] for one in self.ledgers}
        return round(
            sum(
                piece.range.length / coverage.MINUTE * share[piece.symbol]
                for one in self.slices
                for piece in one.pieces
            )
        )

    @property
    def minutes(self) -> int:
        """How long the rate limit alone makes it take; the first calls of a window go at once."""
        return 0 if self.rate_limit is None or not self.requests else (self.requests - 1) // self.rate_limit


def plan_of(ledgers: Sequence[Ledger], asked: Range, rate_limit: int | None, now: datetime) -> Plan:
    """What a backfill of this range would do now."""
    slices = coverage.plan(ledgers, Ranges.of(asked.start, min(asked.end, coverage.minute_floor(now))))
    return Plan(asked=asked, ledgers=tuple(ledgers), slices=tuple(slices), rate_limit=rate_limit)


def days_back(now: datetime, days: int | None, default: int, floor: datetime | None) -> datetime:
    """The UTC midnight from which on so many days back are meant; days: None for the default.

    A whole number of days that just fits into the retention is meant to fit; a default always is.
    """
    back = now - timedelta(days=min(days or default, (now - EPOCH).days))
    start = Timeframe.D1.floor(back)
    if floor is not None and start < floor and (days is None or floor <= Timeframe.D1.ceil(back)):
        return floor
    return start


def refuse_below(floor: datetime | None, start: datetime) -> None:
    """UsageError where a range begins where bars are not kept."""
    if floor is not None and start < floor:
        raise UsageError(
            f"{start:%Y-%m-%d %H:%M} lies below {floor:%Y-%m-%d}, from where on one-minute bars are kept: "
            "start later, or raise RETENTION_1M (`off` keeps everything)"
        )


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a backfill did."""

    stored: Stored
    requests: int
    seconds: float
    failures: dict[str, str]
    """Symbol to the reason of its first failed piece."""
    followed: bool = False
    """Another process fetched all of it; the counts are that one's."""


class Watcher(Protocol):
    """Is told how a backfill goes on."""

    def planned(self, plan: Plan) -> None:
        """The work is known and about to begin."""

    def waiting(self) -> None:
        """Another process calls the provider for this database; we wait for it."""

    def stored(self, piece: Piece, stored: Stored) -> None:
        """A piece is stored."""

    def failed(self, piece: Piece, reason: str) -> None:
        """A piece could not be fetched."""

    def refreshing(self) -> None:
        """All is stored; the last aggregates are being refreshed."""
