"""How large answers are gathered while they are on their way, to be kept: within one bound, and each only once."""

import asyncio
from typing import Any

import pytest

from service.api.memory import KEEP, SMALL, Keep, Keeper, Key, Memory
from service.timeframes import Timeframe

KEY: Key = ("/api/candles/EURUSD", b"", b"", b"", b"http:x")
OTHER: Key = ("/api/candles/GBPUSD", b"", b"", b"", b"http:x")
PART = b"x" * SMALL


class Answering:
    """One answer under way."""

    def __init__(self, memory: Memory, key: Key = KEY) -> None:
        scope: Any = {"state": {KEEP: Keep(depends={}, stored=Timeframe.M1)}}
        self.sent = 0
        self.keeper = Keeper(memory, key, scope, self._count)
        self._message(type="http.response.start", status=200, headers=[])

    def send(self, parts: int, *, last: bool = False) -> None:
        for number in range(parts):
            self._message(type="http.response.body", body=PART, more_body=not last or number < parts - 1)

    def end(self) -> int | None:
        """It ends, or its reader is gone; the size of what is to be kept."""
        self.keeper.give_up()
        return None if self.keeper.answer is None else len(self.keeper.answer.body)

    def _message(self, **message: Any) -> None:  # noqa: ANN401 - as the protocol has it
        asyncio.run(self.keeper.send(message))  # type: ignore[arg-type]

    async def _count(self, _message: Any) -> None:  # noqa: ANN401 - as above
        self.sent += 1


@pytest.fixture
def memory() -> Memory:
    """For sixteen large parts, of which eight may be under way; both answers were asked for before."""
    one = Memory(16 * SMALL)
    for key in (KEY, OTHER):
        first = Answering(one, key)
        first.send(3, last=True)
        assert (first.end(), one.gathered) == (None, 0)
    return one


def test_an_answer_under_way_is_gathered_for_one_of_its_readers_only(memory: Memory) -> None:
    one, other = Answering(memory), Answering(memory)
    one.send(3)
    other.send(3, last=True)
    assert memory.gathered == 3 * SMALL
    assert other.sent == 4
    assert other.end() is None
    one.send(1, last=True)
    assert one.end() == 4 * SMALL
    assert memory.gathered == 0


def test_a_reader_who_leaves_makes_room_for_another(memory: Memory) -> None:
    gone = Answering(memory)
    gone.send(5)
    assert gone.end() is None
    assert memory.gathered == 0
    next_one = Answering(memory)
    next_one.send(4, last=True)
    assert next_one.end() == 4 * SMALL


def test_all_that_is_gathered_stays_within_half_of_the_memory(memory: Memory) -> None:
    one, other = Answering(memory), Answering(memory, OTHER)
    one.send(5)
    other.send(3)
    assert memory.gathered == 8 * SMALL
    other.send(1)
    assert memory.gathered == 5 * SMALL
    other.send(1, last=True)
    assert (other.end(), other.sent) == (None, 6)
    one.send(3, last=True)
    assert one.end() == 8 * SMALL
