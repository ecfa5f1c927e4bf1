"""Finds where a plan's history begins, when ranges before it are refused: half by half, and never asks below again."""

from datetime import datetime, timedelta

import msgspec

from service.agenda import Agenda, Call
from service.ranges import Range
from service.timeframes import Timeframe

DAY = timedelta(days=1)


class HistoryLimits:
    """What refusals have shown so far. A plan covers one asset class as a whole, so a limit holds for all of it."""

    def __init__(self) -> None:
        self._begins: dict[str, datetime] = {}
        """Asset class: what begins earlier is refused."""
        self._refused: dict[str, datetime] = {}
        """Symbol whose limit is being searched: the latest start that was refused."""
        self._found: list[tuple[str, datetime]] = []

    def cut(self, call: Call) -> tuple[Call | None, tuple[str, datetime] | None]:
        """The call without what is known to be refused, or None; and symbol and instant below which nothing is."""
        refused = self._refused.get(call.piece.symbol)
        if refused is not None:
            return self._resumed(call, refused), None
        begins = self._begins.get(call.asset_type)
        if begins is None or call.piece.range.start >= begins:
            return call, None
        below = (call.piece.symbol, begins)
        return (_part(call, begins, call.piece.range.end) if begins < call.piece.range.end else None), below

    def refused(self, call: Call, agenda: Agenda) -> bool:
        """A range of the past was refused: ask for its later half next. False where the symbol itself is refused.

        Whether it is shows at its edge, which may not be answered yet.
        """
        if not agenda.has_answered(call.piece.symbol):
            return agenda.is_followed(call.piece.symbol)
        start, end = call.piece.range
        known = self._refused.get(call.piece.symbol, start)
        if start >= known:
            self._refused[call.piece.symbol] = start
            self._search(call, start, end, agenda)
        return True

    def answered(self, call: Call, agenda: Agenda) -> None:
        """An older range was answered: if a limit is searched, it lies before."""
        refused = self._refused.get(call.piece.symbol)
        if refused is not None and refused < call.piece.range.start:
            self._search(call, refused, call.piece.range.start, agenda)

    def found(self) -> list[tuple[str, datetime]]:
        """Symbols and the instants below which they have nothing, found since the last call."""
        found, self._found = self._found, []
        return found

    def _resumed(self, call: Call, refused: datetime) -> Call | None:
        """A call during a search, which the end of a pass may have cut short: nothing refused is asked for again."""
        start, end = call.piece.range
        if start > refused:
            return call
        return self._half(call, refused, end) if end > refused else None

    def _search(self, call: Call, refused: datetime, end: datetime, agenda: Agenda) -> None:
        half = self._half(call, refused, end)
        if half is not None:
            agenda.retry_first(half)

    def _half(self, call: Call, refused: datetime, end: datetime) -> Call | None:
        """The later half of where the limit may lie; None: it is found.

        What begins at `refused` is refused, and from `end` on everything is answered.
        """
        middle = Timeframe.D1.floor(refused + (end - refused) / 2)
        if middle <= refused:
            middle = Timeframe.D1.floor(refused) + DAY
        if middle >= end:  # no midnight lies between: a history begins with a day
            del self._refused[call.piece.symbol]
            self._begins[call.asset_type] = end
            self._found.append((call.piece.symbol, end))
            return None
        return _part(call, middle, end)


def _part(call: Call, start: datetime, end: datetime) -> Call:
    return msgspec.structs.replace(call, piece=msgspec.structs.replace(call.piece, range=Range(start, end)))
