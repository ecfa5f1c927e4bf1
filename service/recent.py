"""The latest candles as last read: used again while the database says that nothing of their symbol has changed."""

from collections import OrderedDict
from datetime import datetime

import msgspec

from service.bars import Bars, to_ms
from service.coverage import MINUTE
from service.spans import Span
from service.windows import State

MOST_CANDLES = 500_000
"""In all: 32 MB."""


class Read(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What was read."""

    state: State
    candles: Bars
    at: datetime
    """Up to when the latest ones were asked for."""

    def stands(self, now: datetime, floor: datetime | None) -> bool:
        """Whether, with the state still the same, no other candles are the latest ones now.

        Not if bars of the future were there, which time has made present ones, or if retention has come to these.
        """
        last_bar, starts = self.state.ledger.last_bar, self.candles.ts
        if last_bar is None or not len(starts) or last_bar + MINUTE > self.at or now < self.at:
            return False
        return floor is None or int(starts[0]) >= to_ms(floor)


class Recent:
    """The reads of before, by symbol, length and number; those used last, up to MOST_CANDLES."""

    def __init__(self) -> None:
        self._reads: OrderedDict[tuple[str, Span, int], Read] = OrderedDict()
        self._candles = 0

    def get(self, symbol: str, span: Span, limit: int) -> Read | None:
        """The read kept for it."""
        found = self._reads.get((symbol, span, limit))
        if found is not None:
            self._reads.move_to_end((symbol, span, limit))
        return found

    def put(self, symbol: str, span: Span, limit: int, read: Read) -> None:
        """Keep a read in the place of the one before."""
        before = self._reads.pop((symbol, span, limit), None)
        self._candles += len(read.candles) - (0 if before is None else len(before.candles))
        self._reads[symbol, span, limit] = read
        while self._candles > MOST_CANDLES:
            _, oldest = self._reads.popitem(last=False)
            self._candles -= len(oldest.candles)
