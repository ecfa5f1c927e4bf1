"""From columns to the provider's JSON, once for each day: a page is then little more than a join of finished texts."""

from collections import OrderedDict
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from service.bars import Bars
from service.provider_calls.bodies import aggs

_CLOSING = ord("}")


class Fragment(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Rendered bars, ascending: their starts (Unix ms) and their text, a comma behind every bar."""

    ts: NDArray[np.int64]
    text: bytes

    def cut(self, first: int, last: int) -> bytes:
        """The text of the bars at the places `[first, last)`, at least one, a comma behind every bar."""
        if (first, last) == (0, len(self.ts)):
            return self.text
        ends = np.flatnonzero(np.frombuffer(self.text, np.uint8) == _CLOSING) + 2
        return self.text[(ends[first - 1] if first else 0) : ends[last - 1]]


class FragmentCache:
    """The days rendered last, bounded by their size: the oldest in use goes first. Not for several threads."""

    def __init__(self, capacity: int) -> None:
        """capacity: bytes of text and starts."""
        self._capacity = capacity
        self._size = 0
        self._kept: OrderedDict[tuple[str, int, int], Fragment] = OrderedDict()

    def get(self, key: tuple[str, int, int], make: Callable[[], Fragment]) -> Fragment:
        """The fragment of (ticker, day, edition), made now if it is not kept."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        made = self._kept[key] = make()
        self._size += _weight(made)
        while self._size > self._capacity and len(self._kept) > 1:
            self._size -= _weight(self._kept.popitem(last=False)[1])
        return made


def render(bars: Bars) -> Fragment:
    """The text of bars; a value that the source does not have is left out."""
    if not len(bars):
        return Fragment(ts=bars.ts, text=b"")
    text = bytearray(msgspec.json.encode(aggs(bars)))
    text[-1:] = b","
    return Fragment(ts=bars.ts, text=bytes(memoryview(text)[1:]))


def _weight(fragment: Fragment) -> int:
    return len(fragment.text) + fragment.ts.nbytes
