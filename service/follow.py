"""Watches another process fetch a range that somebody here waits for."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from service import coverage, heartbeat, ledger
from service.coverage import Ledger, Piece
from service.db.connect import Database
from service.plan import Watcher, plan_of
from service.ranges import Range, Ranges
from service.settings import Settings
from service.store import Stored


class Follower:
    """Tells how another process's work on the same range goes on."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        symbols: Sequence[str],
        asked: Range,
        *,
        watcher: Watcher,
        clock: Callable[[], datetime],
    ) -> None:
        self.failures: dict[str, str] = {}
        self._db = db
        self._settings = settings
        self._symbols = symbols
        self._asked = asked
        self._watcher = watcher
        self._clock = clock
        self._began = clock()
        self._open: list[Piece] | None = None

    async def look(self) -> bool:
        """Tell what was done since the last look; False when nothing is left to wait for."""
        async with self._db.connection() as conn:
            ledgers = await ledger.ledgers(conn, self._symbols)
            failed = await ledger.failed_since(conn, self._symbols, self._began)
            refusal = await heartbeat.refusal(conn, self._clock())
            if refusal is not None:
                failed = dict.fromkeys(self._symbols, refusal)
        if self._open is None:
            plan = plan_of(ledgers, self._asked, self._settings.polygon_rate_limit, self._clock())
            self._open = [piece for one in plan.slices for piece in one.pieces]
            self._watcher.waiting()
            self._watcher.planned(plan)
        left = {one.symbol: one.work(self._settled(one)) for one in ledgers}
        still: list[Piece] = []
        for piece in self._open:
            if not left.get(piece.symbol, Ranges()) & Ranges([piece.range]):
                self._watcher.stored(piece, Stored())
            elif piece.symbol in failed:
                self.failures.setdefault(piece.symbol, failed[piece.symbol])
                self._watcher.failed(piece, failed[piece.symbol])
            else:
                still.append(piece)
        self._open = still
        return bool(still)

    def _settled(self, one: Ledger) -> Ranges:
        """What of the asked range can be covered by now: after the last bar emptiness takes its time to settle."""
        settle = timedelta(minutes=self._settings.settle_minutes)
        edge = coverage.settled_edge(self._clock(), one.last_bar, settle)
        return Ranges.of(self._asked.start, min(self._asked.end, edge))
