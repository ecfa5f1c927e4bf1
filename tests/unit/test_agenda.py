"""Which call comes next: by a worker's passes in invented time, without clock, database or provider."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.agenda import Agenda, Call, Tracked
from service.coverage import EMPTY_TAIL_SETTLES, GRID, MINUTE, minute_floor, settled_edge
from service.entitlements import Entitlement
from service.instruments import SEED
from service.market_hours import is_open, last_open, market_of, open_time
from service.ranges import Range, Ranges

SETTLE = timedelta(minutes=15)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
INSTRUMENTS = {one.symbol: one for one in SEED}


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NOW = at("2024-06-12 15:00:02")
"""A Wednesday on which every market is open."""


def tracked(symbol: str = "BTCUSD", behind: timedelta = 5 * MINUTE, now: datetime = NOW, **facts: Any) -> Tracked:  # noqa: ANN401
    """A symbol that was asked for that long ago, and is otherwise in order."""
    asked = minute_floor(now - behind)
    usual = Tracked(
        symbol=symbol,
        ticker=INSTRUMENTS[symbol].ticker,
        asset_type=INSTRUMENTS[symbol].asset_type,
        tracked_from=now - 30 * DAY,
        covered_end=asked - SETTLE,
        last_bar=asked - MINUTE,
        asked_to=asked,
        asked_at=now - behind,
        next_attempt_at=None,
        work=Ranges(),
        requested=Ranges(),
        recheck=Ranges(),
    )
    return msgspec.structs.replace(usual, **facts)


def loaded(*symbols: Tracked, now: datetime = NOW, **options: Any) -> Agenda:  # noqa: ANN401
    agenda = Agenda(SETTLE)
    agenda.load(symbols, options.pop("entitlements", {}), now, floor=options.pop("floor", None), **options)
    return agenda


def calls(agenda: Agenda, now: datetime = NOW) -> list[Call]:
    """All that a pass would ask for, had it the time."""
    return list(iter(lambda: agenda.next(now), None))


def told(made: Sequence[Call]) -> list[tuple[str, str]]:
    return [(call.kind, call.piece.symbol) for call in made]


class Life:
    """A pass every minute. The provider has a bar for each open minute but the silent ones, in time."""

    def __init__(self, symbols: Sequence[Tracked], now: datetime, calls_a_minute: int = 1000) -> None:
        self.now = now
        self.known = {one.symbol: one for one in symbols}
        self.silent: list[Range] = []
        self.made: list[tuple[datetime, Call]] = []
        self.worst: list[timedelta] = []
        """The largest lag in open time of any symbol, at the end of each minute."""
        self._rate = calls_a_minute
        self._agenda = Agenda(SETTLE)

    def until(self, end: datetime) -> "Life":
        while self.now < end:
            self._agenda.load(self.known.values(), {}, self.now, floor=None)
            for _ in range(self._rate):
                call = self._agenda.next(self.now)
                if call is None:
                    break
                self.made.append((self.now, call))
                self._answer(call)
            self.worst.append(max(map(self._lag, self.known.values())))
            self.now += MINUTE
        return self

    def asked(self, kind: str = "edge") -> list[str]:
        """When."""
        return [f"{at:%a %H:%M}" for at, call in self.made if call.kind == kind]

    def _answer(self, call: Call) -> None:
        one, piece = self.known[call.piece.symbol], call.piece.range
        if call.kind != "edge":
            name = {"backfill": "work", "recheck": "recheck"}[call.kind]
            rest = getattr(one, name) - Ranges([piece])
            self.known[one.symbol] = msgspec.structs.replace(one, **{name: rest})
            return
        end = last_open(market_of(one.asset_type, one.ticker), piece.end)
        for span in self.silent:
            end = span.start if span.start < end <= span.end else end
        last_bar = max(one.last_bar or end - MINUTE, end - MINUTE)
        settled = min(piece.end, settled_edge(self.now, last_bar, SETTLE))
        self.known[one.symbol] = msgspec.structs.replace(
            one,
            covered_end=max(one.covered_end or settled, settled),
            last_bar=last_bar,
            asked_to=piece.end,
            asked_at=self.now,
        )
        self._agenda.brought(one.symbol, self.now, news=last_bar != one.last_bar)

    def _lag(self, one: Tracked) -> timedelta:
        assert one.asked_to is not None
        return open_time(market_of(one.asset_type, one.ticker), one.asked_to, self.now + MINUTE)


def backlog(slices: int) -> Ranges:
    """So many slices of history still to fetch."""
    return Ranges.of(NOW - (slices + 2) * GRID, NOW - 2 * GRID)


# Order


def test_a_call_that_somebody_waits_for_goes_first() -> None:
    asked = Ranges.of(NOW - 90 * DAY, NOW - 80 * DAY)
    made = calls(loaded(tracked("EURUSD", HOUR), tracked("BTCUSD", MINUTE, work=asked, requested=asked)))
    assert told(made)[:3] == [("backfill", "BTCUSD"), ("edge", "EURUSD"), ("edge", "BTCUSD")]


def test_somebody_who_waits_for_the_present_gets_the_whole_edge_first_and_then_the_past() -> None:
    asked = Ranges.of(minute_floor(NOW) - DAY, minute_floor(NOW))
    waiting = tracked("BTCUSD", MINUTE, requested=asked)
    first, second, third = calls(loaded(tracked("EURUSD", HOUR), waiting))
    assert first.piece.range == Range(minute_floor(NOW) - MINUTE - SETTLE, minute_floor(NOW))
    assert second.piece.range == Range(minute_floor(NOW) - DAY, minute_floor(NOW) - MINUTE - SETTLE)
    assert told([first, second, third]) == [("edge", "BTCUSD"), ("backfill", "BTCUSD"), ("edge", "EURUSD")]


def test_the_symbol_most_behind_in_open_market_time_is_asked_first() -> None:
    """Forex was last asked longer ago than crypto, but most of that was its week-end."""
    now = at("2024-06-16 22:00:02")
    friday, saturday = now - at("2024-06-14 20:00"), now - at("2024-06-15 12:00")
    made = calls(loaded(tracked("EURUSD", friday, now), tracked("BTCUSD", saturday, now), now=now), now)
    assert [call.piece.symbol for call in made] == ["BTCUSD", "EURUSD"]


def test_every_fifth_call_is_older_work_while_both_wait() -> None:
    symbols = [tracked(one.symbol, work=backlog(1)) for one in SEED]
    kinds = [call.kind for call in calls(loaded(*symbols))][:50]
    assert [place for place, kind in enumerate(kinds, 1) if kind == "backfill"] == [*range(5, 51, 5)]


def test_every_call_is_older_work_while_no_edge_is_due() -> None:
    assert told(calls(loaded(tracked(behind=timedelta(), work=backlog(3))))) == [("backfill", "BTCUSD")] * 4


def test_the_history_of_a_new_symbol_waits_until_its_edge_was_asked_for() -> None:
    """Whether the plan covers it at all shows there."""
    made = told(calls(loaded(*(tracked(one.symbol, asked_to=None, covered_end=None, work=backlog(1)) for one in SEED))))
    assert len(made) == 3 * len(SEED)
    assert all(made.index(("edge", symbol)) < made.index(("backfill", symbol)) for _, symbol in made)


def test_the_count_to_the_fifth_call_goes_on_in_the_next_pass() -> None:
    """Where a pass makes four calls at most, older work still gets its share."""
    agenda, kinds = Agenda(SETTLE), []
    for number in range(10):
        now = NOW + number * MINUTE
        agenda.load([tracked(one.symbol, HOUR, now, work=backlog(9)) for one in SEED], {}, now, floor=None)
        kinds += [call.kind for call in (agenda.next(now), agenda.next(now)) if call is not None]
    assert kinds == ["edge", "edge", "edge", "edge", "backfill"] * 4


def test_rechecks_come_before_a_backfill() -> None:
    checked = Ranges.of(NOW - 30 * DAY, NOW - DAY)
    made = calls(
        loaded(tracked("EURUSD", timedelta(), work=backlog(1)), tracked("BTCUSD", timedelta(), recheck=checked))
    )
    assert told(made) == [("recheck", "BTCUSD"), ("backfill", "EURUSD"), ("backfill", "EURUSD")]
    assert made[0].piece.range == Range(NOW - 30 * DAY, NOW - DAY)


def test_a_backfill_does_the_newest_slice_of_all_symbols_before_the_next() -> None:
    """A refresh of the aggregates costs by time: a slice is refreshed once, for all symbols."""
    made = calls(loaded(*(tracked(one, timedelta(), work=backlog(2)) for one in ("BTCUSD", "ETHUSD"))))
    assert [call.piece.symbol for call in made] == ["BTCUSD", "ETHUSD"] * 3
    starts = [call.piece.range.start for call in made]
    assert starts == sorted(starts, reverse=True)
    assert max(call.piece.range.length for call in made) <= GRID


def test_a_pass_for_the_edge_alone_does_no_older_work() -> None:
    assert told(calls(loaded(tracked(work=backlog(1)), older=False))) == [("edge", "BTCUSD")]


# Fairness


@settings(max_examples=10)
@given(
    lags=st.lists(st.integers(0, 60), min_size=len(SEED), max_size=len(SEED)),
    slices=st.sampled_from([0, 3]),
    minute=st.integers(0, 7 * 24 * 60),
)
def test_at_five_calls_a_minute_45_symbols_share_them_fairly(lags: list[int], slices: int, minute: int) -> None:
    """Whatever the start: no symbol's open time lags more than ten minutes, nor more than twelve during a backfill."""
    now = NOW + minute * MINUTE
    symbols = [
        tracked(one.symbol, lag * MINUTE, now, work=backlog(slices) if slices else Ranges())
        for one, lag in zip(SEED, lags, strict=True)
    ]
    life = Life(symbols, now, calls_a_minute=5).until(now + 90 * MINUTE)
    settled = life.worst[30:]
    assert max(settled) <= (12 if slices else 10) * MINUTE
    assert len(life.asked("backfill")) >= (len(life.made) // 5 if slices else 0)


def test_a_backfill_costs_the_edge_of_45_symbols_three_minutes_of_lag_at_most() -> None:
    """The figures at five calls a minute, with all markets open: 9 minutes without a backfill, 12 with one."""
    for slices, most, share in ((0, 9, 0), (3, 12, 90)):
        begin = NOW - HOUR
        symbols = [tracked(one.symbol, 8 * MINUTE, begin, work=backlog(slices)) for one in SEED]
        life = Life(symbols, begin, calls_a_minute=5).until(NOW + 30 * MINUTE)
        assert max(life.worst[45:]) <= most * MINUTE
        assert len(life.asked("backfill")) == share


def test_without_edges_a_backfill_has_all_calls_and_ends() -> None:
    life = Life([tracked(work=backlog(3))], NOW, calls_a_minute=2).until(NOW + 10 * MINUTE)
    assert life.known["BTCUSD"].work == Ranges()
    assert len(life.asked("edge")) == 10


# Closed markets


def test_nothing_is_asked_of_forex_over_the_week_end() -> None:
    """But for one call that settles Friday's last minutes; closed time comes with the first call after the open."""
    life = Life([tracked("EURUSD", MINUTE, at("2024-06-14 20:58:02"))], at("2024-06-14 20:58:02"))
    life.until(at("2024-06-16 21:03:00"))
    assert life.asked() == ["Fri 20:58", "Fri 20:59", "Fri 21:00", "Fri 21:16", "Sun 21:01", "Sun 21:02"]
    _, sunday = life.made[4]
    assert sunday.piece.range == Range(at("2024-06-14 21:00"), at("2024-06-16 21:01"))


@pytest.mark.parametrize(
    ("symbol", "closes", "opens"),
    [
        ("SPX500", "2024-06-12 20:00", "2024-06-13 13:30"),  # a night
        ("SPX500", "2024-07-03 17:00", "2024-07-05 13:30"),  # a half day, then Independence Day
        ("DAX40", "2024-03-28 16:30", "2024-04-02 07:00"),  # Easter, and Berlin's clocks went forward
        ("EURUSD", "2024-03-08 22:00", "2024-03-10 21:00"),  # New York's clocks went forward
        ("EURUSD", "2024-11-01 21:00", "2024-11-03 22:00"),  # and back
    ],
)
def test_nothing_is_asked_of_a_closed_market(symbol: str, closes: str, opens: str) -> None:
    closed, opened = at(closes), at(opens)
    market = market_of(INSTRUMENTS[symbol].asset_type, INSTRUMENTS[symbol].ticker)
    assert not is_open(market, closed)
    assert is_open(market, opened)
    begin = closed - 5 * MINUTE + timedelta(seconds=2)
    life = Life([tracked(symbol, MINUTE, begin)], begin).until(opened + 2 * MINUTE)
    asked = [minute_floor(at) for at, _ in life.made]
    assert [one for one in asked if closed < one <= opened] == [closed + SETTLE + MINUTE]
    assert asked[-1] == opened + MINUTE


def test_a_last_minute_without_a_trade_is_asked_for_once_more_when_emptiness_settles() -> None:
    """36 hours after the close; until then the provider might still deliver it."""
    life = Life([tracked("EURUSD", MINUTE, at("2024-06-14 20:58:02"))], at("2024-06-14 20:58:02"))
    life.silent = [Range(at("2024-06-14 20:58"), at("2024-06-14 21:00"))]
    life.until(at("2024-06-16 20:59:00"))
    assert life.asked()[-2:] == ["Fri 21:16", "Sun 09:01"]
    assert at("2024-06-16 09:01") - EMPTY_TAIL_SETTLES == at("2024-06-14 21:01")
    assert life.known["EURUSD"].covered_end is not None
    assert life.known["EURUSD"].covered_end >= at("2024-06-14 21:00")


def test_a_symbol_that_was_never_asked_for_is_due_in_a_closed_market_too() -> None:
    """Its history is not there yet."""
    saturday = at("2024-06-15 12:00:02")
    fresh = tracked("EURUSD", now=saturday, covered_end=None, last_bar=None, asked_to=None, asked_at=None)
    (call,) = calls(loaded(fresh, now=saturday), saturday)
    assert call.piece.range == Range(minute_floor(saturday) - GRID, minute_floor(saturday))


def test_a_class_given_at_the_end_of_the_day_is_asked_for_once_that_is_over() -> None:
    """Up to New York's midnight, when the bars before it have settled."""
    midnight = at("2024-06-12 04:00")
    plan = {"crypto": Entitlement(kind="end-of-day", seen_at=NOW)}
    for now, due in ((NOW, 0), (midnight + DAY + 14 * MINUTE, 0), (midnight + DAY + 15 * MINUTE, 1)):
        one = tracked(now=now, asked_to=midnight, asked_at=midnight + HOUR, covered_end=midnight)
        made = calls(loaded(one, now=now, entitlements=plan), now)
        assert [call.piece.range.end for call in made] == [midnight + DAY] * due


def test_a_delayed_class_is_asked_for_what_can_be_there() -> None:
    plan = {"crypto": Entitlement(kind="delayed", delay=15 * MINUTE, seen_at=NOW)}
    (call,) = calls(loaded(tracked(behind=HOUR), entitlements=plan))
    assert call.piece.range.end == minute_floor(NOW) - 15 * MINUTE
    assert calls(loaded(tracked(behind=timedelta()), entitlements=plan)) == []


def test_what_could_not_be_there_yet_was_not_asked_for() -> None:
    """Before a delay was known, or by a clock that ran ahead: the next call does not wait until that time has come."""
    plan = {"crypto": Entitlement(kind="delayed", delay=15 * MINUTE, seen_at=NOW)}
    assert len(calls(loaded(tracked(behind=MINUTE), entitlements=plan))) == 1
    (call,) = calls(loaded(tracked(behind=MINUTE, asked_to=NOW + 3 * DAY)))
    assert call.piece.range.end == minute_floor(NOW)


# Quiet and failing symbols


def test_a_symbol_without_news_is_left_alone_ever_longer_up_to_15_minutes() -> None:
    """And is asked for each minute as soon as something came."""
    begin = at("2024-06-12 08:00:02")
    life = Life([tracked(now=begin)], begin)
    life.silent = [Range(at("2024-06-12 08:00"), at("2024-06-12 09:08"))]
    life.until(at("2024-06-12 09:25:00"))
    asked = [minute_floor(at) for at, _ in life.made]
    rests = [(later - earlier) // MINUTE for earlier, later in pairwise(asked)]
    assert rests[:9] == [1, 1, 2, 4, 8, 15, 15, 15, 15]
    assert set(rests[9:]) == {1}


def test_a_failing_symbol_rests_and_keeps_nobody_waiting() -> None:
    checked = Ranges.of(NOW - 30 * DAY, NOW - DAY)
    failed = tracked("EURUSD", HOUR, next_attempt_at=NOW + MINUTE, work=backlog(1), recheck=checked)
    assert told(calls(loaded(failed, tracked("BTCUSD")))) == [("edge", "BTCUSD")]
    later = NOW + MINUTE
    agenda = loaded(failed, now=later)
    assert [kind for kind, _ in told(calls(agenda, later))] == ["edge", "recheck", "backfill", "backfill"]


def test_somebody_s_request_does_not_wait_for_the_end_of_a_rest() -> None:
    asked = Ranges.of(NOW - 90 * DAY, NOW - 80 * DAY)
    one = tracked("EURUSD", work=asked, requested=asked, next_attempt_at=NOW + DAY)
    assert told(calls(loaded(one))) == [("backfill", "EURUSD")]


# What is asked for


def test_an_edge_is_never_longer_than_a_page_and_the_rest_is_older_work() -> None:
    """After a sleep of 100 days: the newest page first, whatever lies before it in the backfill's turn."""
    now, slept = minute_floor(NOW), 100 * DAY
    one = tracked(behind=slept, tracked_from=NOW - 200 * DAY)
    one = msgspec.structs.replace(one, work=Ranges.of(one.covered_end or now, now))
    edge, *older = calls(loaded(one))
    assert (edge.kind, edge.piece.range) == ("edge", Range(now - GRID, now))
    assert Ranges(call.piece.range for call in older) == Ranges.of(now - slept - SETTLE, now - GRID)
    assert {call.kind for call in older} == {"backfill"}


def test_the_edge_goes_from_what_is_covered_to_the_running_minute() -> None:
    (call,) = calls(loaded(tracked(behind=7 * MINUTE)))
    assert call.piece.range == Range(at("2024-06-12 14:38"), at("2024-06-12 15:00"))


def test_nothing_below_the_floor_is_asked_for() -> None:
    floor = at("2024-06-01 00:00")
    fresh = tracked(covered_end=None, asked_to=None, asked_at=None, work=backlog(2) | Ranges.of(NOW - 30 * DAY, NOW))
    made = calls(loaded(fresh, floor=floor))
    assert [call.piece.range.start for call in made] == [floor]


def test_a_deactivated_symbol_is_not_followed_but_what_was_asked_for_is_fetched() -> None:
    """Up to what has settled: nobody settles the rest."""
    one = tracked(tracked_from=None, asked_to=None, last_bar=NOW - HOUR, work=Ranges.of(NOW - 2 * DAY, NOW))
    (call,) = calls(loaded(one))
    assert (call.kind, call.piece.range) == ("backfill", Range(NOW - 2 * DAY, NOW - HOUR + MINUTE))
    assert calls(loaded(tracked(tracked_from=None))) == []


def test_the_tail_of_what_nobody_follows_is_not_fetched_minute_by_minute() -> None:
    """It settles by the minute; it is asked for when all of it has, or a quarter of an hour."""
    end = minute_floor(NOW)
    for minutes, due in ((5, 0), (14, 0), (15, 15), (16, 15)):
        now = NOW + minutes * MINUTE
        one = tracked(now=now, tracked_from=None, last_bar=end - MINUTE, work=Ranges.of(end - SETTLE, end))
        made = calls(loaded(one, now=now), now)
        assert [call.piece.range.length for call in made] == [due * MINUTE] * bool(due)
    long = tracked(now=NOW, tracked_from=None, last_bar=None, work=Ranges.of(end - 40 * HOUR, end))
    (call,) = calls(loaded(long))
    assert call.piece.range == Range(end - 40 * HOUR, end - EMPTY_TAIL_SETTLES)


# Within a pass


def test_an_edge_is_asked_for_once_a_pass() -> None:
    """Even where a minute has gone meanwhile."""
    agenda = loaded(tracked("EURUSD"), tracked("BTCUSD"))
    assert len(calls(agenda)) == 2
    assert calls(agenda, NOW + MINUTE) == []
    assert not agenda.left


def test_what_is_requested_during_a_pass_comes_next() -> None:
    agenda = loaded(tracked("EURUSD", HOUR), tracked("BTCUSD"), tracked("ETHUSD"))
    assert told([call for call in [agenda.next(NOW)] if call]) == [("edge", "EURUSD")]
    now = minute_floor(NOW)
    agenda.await_first([tracked("ETHUSD", requested=Ranges.of(now - DAY, now))], NOW)
    assert told(calls(agenda)) == [("edge", "ETHUSD"), ("backfill", "ETHUSD"), ("edge", "BTCUSD")]


def test_an_edge_that_was_asked_for_is_asked_for_again_if_somebody_wants_it() -> None:
    agenda = loaded(tracked("BTCUSD"))
    assert told(calls(agenda)) == [("edge", "BTCUSD")]
    later = NOW + MINUTE
    asked = minute_floor(later)
    fresh = tracked("BTCUSD", MINUTE, later, requested=Ranges.of(asked - MINUTE, asked))
    agenda.await_first([fresh], later)
    assert told(calls(agenda, later)) == [("edge", "BTCUSD")]


def test_what_is_requested_is_not_fetched_a_second_time_as_older_work() -> None:
    asked = Ranges.of(NOW - 90 * DAY, NOW - 80 * DAY)
    one = tracked("BTCUSD", timedelta(), work=asked | Ranges.of(NOW - 79 * DAY, NOW - 78 * DAY), requested=asked)
    pieces = [call.piece.range for call in calls(loaded(one))]
    assert Ranges(pieces) == one.work
    assert sum((piece.length for piece in pieces), timedelta()) == one.work.length


def test_two_requests_in_one_pass_do_not_fetch_the_first_twice() -> None:
    """Each look at what is requested finds all that is not fetched yet."""
    first, second = (Ranges.of(NOW - days * DAY, NOW - (days - 5) * DAY) for days in (90, 70))
    one = tracked("BTCUSD", timedelta(), work=first, requested=first)
    agenda = loaded(one)
    agenda.await_first([msgspec.structs.replace(one, work=first | second, requested=first | second)], NOW)
    pieces = [call.piece.range for call in calls(agenda)]
    assert Ranges(pieces) == first | second
    assert len(pieces) == 2


def test_a_call_to_repeat_goes_first() -> None:
    agenda = loaded(tracked("EURUSD", HOUR), tracked("BTCUSD"))
    call = agenda.next(NOW)
    assert call is not None
    agenda.retry_first(call)
    assert told(calls(agenda)) == [("edge", "EURUSD"), ("edge", "BTCUSD")]
