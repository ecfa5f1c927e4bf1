"""The sliding window, on an event loop whose time is virtual: nothing here really sleeps."""

import asyncio
import itertools
from collections.abc import Coroutine, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.provider.ratelimit import SlidingWindow
from service.timeframes import utc_now

WINDOW = 60.0
EPOCH = datetime(2025, 2, 25, 9, 0, tzinfo=UTC)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to its next timer instead of waiting for it."""

    _now = 0.0

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]
            due = [timer.when() for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
            assert due, "all tasks wait for one another"
            self._now = max(self._now, min(due))
        super()._run_once()  # type: ignore[misc]


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run on a virtual loop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)


def seconds() -> float:
    """Virtual seconds."""
    return asyncio.get_running_loop().time()


def clock() -> datetime:
    """A wall clock of virtual time."""
    return EPOCH + timedelta(seconds=seconds())


def ages(*values: float) -> list[datetime]:
    """The times that lie so many seconds back."""
    return [clock() - timedelta(seconds=value) for value in values]


class Calls:
    """Calls through one limiter: when they were sent, received and answered, in virtual seconds."""

    def __init__(self, limiter: SlidingWindow) -> None:
        self.limiter = limiter
        self.sent: list[float] = []
        self.received: list[float] = []
        self.answered: list[float] = []

    async def one(self, at: float = 0.0, there: float = 0.0, back: float = 0.0) -> None:
        """Come at a time, then call: so many seconds there, so many back."""
        await asyncio.sleep(at)
        async with self.limiter.slot():
            self.sent.append(seconds())
            await asyncio.sleep(there)
            self.received.append(seconds())
            await asyncio.sleep(back)
            self.answered.append(seconds())

    async def many(self, plan: Iterable[Sequence[float]]) -> None:
        """Make all calls at once."""
        await asyncio.gather(*(self.one(*times) for times in plan))


TIMES = st.tuples(st.floats(0, 150), st.floats(0, 40), st.floats(0, 40))


@settings(deadline=None, max_examples=150)
@given(limit=st.integers(1, 4), plan=st.lists(TIMES, max_size=14), history=st.lists(st.floats(0, 90), max_size=4))
def test_never_more_than_the_limit_reaches_the_server(
    limit: int, plan: list[tuple[float, float, float]], history: list[float]
) -> None:
    """Whenever the calls arrive between sending and answer, no window holds more of them than the plan allows."""

    async def main() -> None:
        known = sorted(history)[:limit]
        calls = Calls(SlidingWindow(limit, WINDOW, clock=clock, history=ages(*known)))
        await calls.many(plan)
        received = sorted([-age for age in known] + calls.received)
        for earlier, later in zip(received, received[limit:], strict=False):
            assert later - earlier > WINDOW - 1e-5

    run(main())


@settings(deadline=None, max_examples=150)
@given(limit=st.integers(1, 4), plan=st.lists(TIMES, max_size=14, unique_by=lambda times: times[0]))
def test_nobody_waits_without_need(limit: int, plan: list[tuple[float, float, float]]) -> None:
    """Calls go in the order of their coming, each as soon as fewer than `limit` places are held."""

    async def main() -> None:
        calls = Calls(SlidingWindow(limit, WINDOW, clock=clock))
        await calls.many(plan)
        expected: list[float] = []
        held_until: list[float] = []
        for at, there, back in sorted(plan):
            free = sorted(held_until)[-limit] if len(held_until) >= limit else 0.0
            expected.append(max(at, free, *expected[-1:]))
            held_until.append(expected[-1] + there + back + WINDOW)
        assert calls.sent == pytest.approx(expected, abs=0.05)

    run(main())


def test_first_calls_go_at_once() -> None:
    """The first `limit` calls are sent without any wait, the next one a window after the first answer."""

    async def main() -> None:
        calls = Calls(SlidingWindow(5, clock=clock))
        await calls.many([(0.0, 1.0, 1.0)] * 6)
        assert calls.sent == [0, 0, 0, 0, 0, pytest.approx(62)]

    run(main())


def test_no_limit_no_wait() -> None:
    """Without a limit no call waits, and the calls are still recorded."""

    async def main() -> None:
        recorded: list[datetime] = []

        async def record(at: datetime) -> None:
            recorded.append(at)

        calls = Calls(SlidingWindow(None, clock=clock, record=record))
        await calls.many([(0.0, 5.0, 5.0)] * 50)
        assert calls.sent == [0.0] * 50
        assert recorded == [EPOCH] * 50

    run(main())


def test_limit_of_nothing_is_refused() -> None:
    """A limit that would never let a call pass is an error of the caller."""
    with pytest.raises(ValueError, match="never"):
        SlidingWindow(0)


def test_history_survives_a_restart() -> None:
    """Calls of the last minute from before a restart hold their places; older ones do not, future ones count as now."""

    async def main() -> None:
        calls = Calls(SlidingWindow(3, clock=clock, history=ages(10, 30, 61, -500)))
        await calls.many([(0.0,), (0.0,), (0.0,)])
        assert calls.sent == pytest.approx([30, 50, 60])

    run(main())


def test_calls_are_recorded_before_they_are_sent() -> None:
    """`record` is awaited, with the time of the call, before the body of the slot runs."""

    async def main() -> None:
        events: list[object] = []

        async def record(at: datetime) -> None:
            await asyncio.sleep(1)
            events.append(at)

        async with SlidingWindow(1, clock=clock, record=record).slot():
            events.append("sent")
        assert events == [EPOCH, "sent"]

    run(main())


def test_failed_record_sends_nothing_and_keeps_no_place() -> None:
    """If the call cannot be recorded it is not made, and the place is free for the next."""

    async def main() -> None:
        failures = iter([OSError("disk full")])

        async def record(_: datetime) -> None:
            for failure in failures:
                raise failure

        calls = Calls(SlidingWindow(1, clock=clock, record=record))
        with pytest.raises(OSError, match="disk full"):
            await calls.one()
        await calls.one()
        assert calls.sent == [0]

    run(main())


def test_cancelled_waiter_gives_up_its_place() -> None:
    """A task that is cancelled while it waits takes no place from those behind it."""

    async def main() -> None:
        calls = Calls(SlidingWindow(1, clock=clock))
        await calls.one()
        impatient = [asyncio.create_task(calls.one()) for _ in range(3)]
        patient = asyncio.create_task(calls.one())
        await asyncio.sleep(10)
        for task in impatient:
            task.cancel()
        await asyncio.gather(*impatient, return_exceptions=True)
        await patient
        assert calls.sent == [0, pytest.approx(60)]

    run(main())


@pytest.mark.parametrize("cancelled", [True, False])
def test_broken_off_call_still_counts(*, cancelled: bool) -> None:
    """A call that failed or was cancelled in flight may have reached the server: it holds its place for a window."""

    async def main() -> None:
        limiter = SlidingWindow(1, clock=clock)

        async def broken() -> None:
            async with limiter.slot():
                await asyncio.sleep(5)
                raise ConnectionError

        task = asyncio.create_task(broken())
        await asyncio.sleep(3)
        if cancelled:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        calls = Calls(limiter)
        await calls.one()
        assert calls.sent == [pytest.approx(63 if cancelled else 65)]

    run(main())


def test_clock_that_jumps_back_costs_one_window_at_most() -> None:
    """A wall clock set back by hours neither blocks the limiter nor lets a call slip through."""

    async def main() -> None:
        set_back = timedelta()
        calls = Calls(SlidingWindow(1, clock=lambda: clock() - set_back))
        await calls.one()
        waiting = asyncio.create_task(calls.one())
        await asyncio.sleep(30)
        set_back = timedelta(hours=5)
        await waiting
        assert WINDOW <= calls.sent[1] <= 2 * WINDOW + 1
        await calls.one()
        assert calls.sent[2] == pytest.approx(calls.sent[1] + WINDOW)

    run(main())


async def test_real_clocks_by_default() -> None:
    """Without a clock of its own the limiter uses the real ones, and the wall clock's time is recorded."""
    recorded: list[datetime] = []

    async def record(at: datetime) -> None:
        recorded.append(at)

    limiter = SlidingWindow(2, window=0.05, history=[utc_now()], record=record)
    began = utc_now()
    for _ in range(2):
        async with limiter.slot():
            pass
    assert utc_now() - began >= timedelta(seconds=0.04)
    assert all(earlier <= later for earlier, later in itertools.pairwise([began, *recorded]))
