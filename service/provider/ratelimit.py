"""The plan's calls per minute are kept here, so that the provider never has to refuse one."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime

from service.timeframes import utc_now

SHORTEST_SLEEP = 0.001
"""Seconds; a shorter one might not move a clock of microseconds at all."""


class SlidingWindow:
    """At most `limit` calls reach the server within any `window` seconds; the first `limit` go at once.

    A call may reach the server at any moment between its sending and its answer. So it holds its place from its
    sending until `window` seconds after its answer (or failure, or cancellation), and no two calls that share a
    place are received less than a window apart. Waiting tasks are served in the order of their coming; a cancelled
    one gives up its turn. One instance belongs to one event loop.

    limit: None = no waiting at all. window: seconds.
    clock: one clock for everything, aware; for tests. If it jumps back, that costs at most one window. None = the wall
        clock for `record` and `history`, and the monotonic clock, which never jumps, for the waiting.
    history: times (aware) of earlier calls, so that a restart does not exceed the plan. They are taken as answered
        then; those older than the window do not matter, one in the future counts as made now.
    record: awaited with the time (aware) of each call before it is sent. If it fails, the call is not made.
    """

    def __init__(
        self,
        limit: int | None,
        window: float = 60.0,
        *,
        clock: Callable[[], datetime] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        history: Iterable[datetime] = (),
        record: Callable[[datetime], Awaitable[object]] | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"a limit of {limit} calls would never let one pass")
        self._limit = limit
        self._window = window
        self._wall = clock or utc_now
        self._seconds = time.monotonic if clock is None else _never_back(clock)
        self._sleep = sleep
        self._record = record
        self._turn = asyncio.Lock()
        self._answered = asyncio.Event()
        self._in_flight = 0
        ages = sorted((max(0.0, (self._wall() - at).total_seconds()) for at in history), reverse=True)
        self._free_at = deque(self._seconds() + window - age for age in ages)
        """When the places of answered calls become free, ascending."""

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place and hold it; the body of the `async with` is one call, from its sending to its answer."""
        await self._enter()
        sent = False
        try:
            if self._record is not None:
                await self._record(self._wall())
            sent = True
            yield
        finally:
            self._in_flight -= 1
            if sent and self._limit is not None:
                self._free_at.append(self._seconds() + self._window)
            self._answered.set()

    async def free(self) -> None:
        """Wait until a place is free, without taking it: so that what is asked for can be chosen at the last moment."""
        async with self._turn:
            await self._until_free()

    async def _enter(self) -> None:
        """Return when a place is free, and take it."""
        async with self._turn:
            await self._until_free()
            self._in_flight += 1

    async def _until_free(self) -> None:
        while (wait := self._wait()) is not None:
            if wait > 0:
                await self._sleep(max(wait, SHORTEST_SLEEP))
            else:
                self._answered.clear()
                await self._answered.wait()

    def _wait(self) -> float | None:
        """Seconds until a place may be free; None if one is, 0 if that depends on the answer to a call in flight."""
        if self._limit is None:
            return None
        now = self._seconds()
        while self._free_at and self._free_at[0] <= now:
            self._free_at.popleft()
        if self._in_flight + len(self._free_at) < self._limit:
            return None
        return self._free_at[0] - now if self._free_at else 0.0


def _never_back(clock: Callable[[], datetime]) -> Callable[[], float]:
    """Seconds since now that stand still where the clock jumps back, and go on from there."""
    origin = last = clock()

    def seconds() -> float:
        nonlocal origin, last
        now = clock()
        if now < last:
            origin -= last - now
        last = now
        return (now - origin).total_seconds()

    return seconds
