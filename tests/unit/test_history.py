"""Where a plan's history begins: found by halves, against an invented provider that refuses what begins before it."""

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from service.agenda import Agenda, Call, Tracked
from service.history import HistoryLimits
from service.ranges import Ranges
from service.timeframes import Timeframe

NOW = datetime(2024, 6, 12, 15, 0, tzinfo=UTC)
DAY = timedelta(days=1)
MOST = 8
"""Calls that finding a limit may cost more than asking for all that is there."""


def tracked(symbol: str, days: float, *, covered: bool = True) -> Tracked:
    """A symbol with so many days of history to fetch before its last 28 days."""
    edge = NOW - 28 * DAY
    return Tracked(
        symbol=symbol,
        ticker=f"X:{symbol}",
        asset_type="crypto",
        tracked_from=NOW - days * DAY,
        covered_end=NOW if covered else None,
        last_bar=NOW if covered else None,
        asked_to=NOW if covered else None,
        asked_at=NOW if covered else None,
        next_attempt_at=None,
        work=Ranges.of(NOW - days * DAY, edge),
        requested=Ranges(),
        recheck=Ranges(),
    )


class Life:
    """Passes over a history of which the provider gives nothing that begins before `limit`."""

    def __init__(self, limit: datetime, symbols: list[Tracked], calls_a_pass: int = 1000) -> None:
        self.limits = HistoryLimits()
        self.limit = limit
        self.known = {one.symbol: one for one in symbols}
        self.stored = {one.symbol: Ranges() for one in symbols}
        self.unavailable = {one.symbol: Ranges() for one in symbols}
        self.refused: list[Call] = []
        self.calls: list[Call] = []
        self.failed: list[Call] = []
        self._rate = calls_a_pass
        self._agenda = Agenda(15 * timedelta(minutes=1))

    def run_pass(self) -> int:
        """How many calls it made."""
        self._agenda.load(self.known.values(), {}, NOW, floor=None)
        made = 0
        while made < self._rate:
            planned = self._agenda.next(NOW)
            if planned is None:
                break
            call, below = self.limits.cut(planned)
            self._mark([below] if below else [])
            if call is not None:
                made += 1
                self._ask(call)
        self._mark(self.limits.found())
        return made

    def to_the_end(self) -> "Life":
        for _ in range(400):
            if not self.run_pass():
                return self
        raise AssertionError("it never ends")

    def _ask(self, call: Call) -> None:
        self.calls.append(call)
        symbol, span = call.piece.symbol, call.piece.range
        if span.start < self.limit:
            self.refused.append(call)
            if not self.limits.refused(call, self._agenda):
                self.failed.append(call)
                self._agenda.failed(call, NOW)
        else:
            self.stored[symbol] |= Ranges([span])
            self._settle(symbol, Ranges([span]))
            self._agenda.answered(call)
            self.limits.answered(call, self._agenda)

    def _mark(self, found: list[tuple[str, datetime]]) -> None:
        for symbol, below in found:
            nothing = Ranges.of(NOW - 9999 * DAY, below)
            self.unavailable[symbol] |= self.known[symbol].work & nothing
            self._settle(symbol, nothing)

    def _settle(self, symbol: str, done: Ranges) -> None:
        one = self.known[symbol]
        self.known[symbol] = msgspec.structs.replace(one, work=one.work - done)


depths = st.integers(29 * 24 * 60, 250 * 24 * 60).map(lambda minutes: timedelta(minutes=minutes))


@settings(max_examples=60)
@given(depth=depths, history=st.integers(30, 200), calls_a_pass=st.sampled_from([1, 2, 3, 1000]))
def test_all_that_there_is_is_fetched_and_the_rest_is_known_not_to_be_there(
    depth: timedelta, history: int, calls_a_pass: int
) -> None:
    """To the day; with few calls, even where a pass is over after one."""
    limit = NOW - depth
    whole = tracked("BTCUSD", history).work
    life = Life(limit, [tracked("BTCUSD", history)], calls_a_pass).to_the_end()
    begins = Timeframe.D1.ceil(limit)
    stored, unavailable = life.stored["BTCUSD"], life.unavailable["BTCUSD"]
    assert stored | unavailable == whole
    assert stored & unavailable == Ranges()
    assert not (whole & Ranges.of(begins, NOW)) - stored
    assert not stored & Ranges.of(NOW - 9999 * DAY, limit)
    pages = history // 28 + 1
    assert len(life.calls) <= pages + MOST
    assert len(life.refused) <= MOST
    assert life.failed == []


def test_a_history_that_is_all_there_costs_no_call_more() -> None:
    life = Life(NOW - 999 * DAY, [tracked("BTCUSD", 120)]).to_the_end()
    assert life.refused == []
    assert life.stored["BTCUSD"] == tracked("BTCUSD", 120).work
    assert life.unavailable["BTCUSD"] == Ranges()


def test_the_limit_found_for_one_symbol_holds_for_its_class() -> None:
    """The others are asked from there on, and never refused."""
    symbols = [tracked(f"COIN{number}", 120) for number in range(10)]
    life = Life(NOW - 80 * DAY, symbols).to_the_end()
    assert {call.piece.symbol for call in life.refused} == {"COIN0"}
    assert len(set(life.stored.values())) == len(set(life.unavailable.values())) == 1
    assert len(life.refused) <= MOST


def test_what_is_asked_for_later_below_the_limit_costs_no_call() -> None:
    life = Life(NOW - 80 * DAY, [tracked("BTCUSD", 120)]).to_the_end()
    known = len(life.calls)
    life.known["BTCUSD"] = msgspec.structs.replace(
        life.known["BTCUSD"], work=Ranges.of(NOW - 400 * DAY, NOW - 300 * DAY)
    )
    assert life.run_pass() == 0
    assert len(life.calls) == known
    assert NOW - 350 * DAY in life.unavailable["BTCUSD"]


def test_another_class_is_searched_by_itself() -> None:
    """A plan covers one asset class as a whole, and each class by itself."""
    other = msgspec.structs.replace(tracked("EURUSD", 120), asset_type="forex")
    life = Life(NOW - 80 * DAY, [tracked("BTCUSD", 120), other]).to_the_end()
    assert {call.piece.symbol for call in life.refused} == {"BTCUSD", "EURUSD"}
    assert len(set(life.stored.values())) == 1


def test_a_symbol_that_never_got_an_answer_may_be_refused_itself() -> None:
    """Nobody looks for the beginning of a history that is not there."""
    inactive = msgspec.structs.replace(tracked("BTCUSD", 60, covered=False), tracked_from=None)
    life = Life(NOW, [inactive])
    life.run_pass()
    assert len(life.failed) == len(life.calls) == 1
    assert life.unavailable["BTCUSD"] == Ranges()


def test_a_symbol_whose_edge_is_not_answered_yet_is_neither_refused_nor_searched() -> None:
    """As in the first pass over a plan without a limit of calls, where older work is asked for beside the edge."""
    limits, agenda = HistoryLimits(), Agenda(timedelta(minutes=15))
    agenda.load([tracked("BTCUSD", 60, covered=False)], {}, NOW, floor=None)
    edge, *older = list(iter(lambda: agenda.next(NOW), None))
    assert edge.kind == "edge"
    assert limits.refused(older[0], agenda)
    assert agenda.next(NOW) is None
    agenda.answered(edge)
    assert limits.refused(older[0], agenda)
    half = agenda.next(NOW)
    assert half is not None
    assert half.piece.range.end == older[0].piece.range.end
    assert half.piece.range.start > older[0].piece.range.start


def test_refusals_of_calls_made_at_once_do_not_mislead_the_search() -> None:
    """Those of older slices say nothing new, whenever they come."""
    limits, agenda = HistoryLimits(), Agenda(timedelta(minutes=15))
    agenda.load([tracked("BTCUSD", 120)], {}, NOW, floor=None)
    newest, second, third = list(iter(lambda: agenda.next(NOW), None))[:3]
    assert limits.refused(newest, agenda)
    assert limits.refused(second, agenda)
    assert limits.cut(third) == (None, None)
    half = agenda.next(NOW)
    assert half is not None
    assert agenda.next(NOW) is None
    limits.answered(half, agenda)
    following = agenda.next(NOW)
    assert following is not None
    assert following.piece.range.end == half.piece.range.start
    assert following.piece.range.start > newest.piece.range.start
