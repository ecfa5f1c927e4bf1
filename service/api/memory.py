"""Answers kept in memory: what only a correction can change is sent again without being read again.

Before a kept answer is sent, the database is asked for the changes since the last look (one small query for all who
wait, however many), so that no answer is older than its request.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from service.api.serving import Serving
from service.feed import Change, Feed
from service.ranges import Range
from service.timeframes import Timeframe

KEEP = "candlewick.keep"
"""Where a handler says, in the scope's state, that its answer may be kept: a `Keep`."""
SMALL = 256 * 1024
"""Bytes: up to this size an answer is kept at once, above only when it is asked for again: a single pass over years of
bars would push out all the others."""
LONGEST_KEY = 2000
"""Bytes of address and headers: a longer question is not remembered."""
_ASKED_BEFORE = 1000
_RECENT = 10_000
_KEPT_WITH_304 = (b"etag", b"cache-control", b"vary")

Key = tuple[str, bytes, bytes, bytes, bytes]


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer depends on."""

    depends: Mapping[str, Range]
    """For each symbol: a change within it makes the answer an old one."""
    stored: Timeframe
    """Whose retention ends it."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """An answer."""

    keep: Keep
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def is_named_by(self, if_none_match: bytes) -> bool:
        """Whether the header names its tag."""
        return dict(self.headers)[b"etag"] in if_none_match or if_none_match.strip() == b"*"

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return len(self.body) + LONGEST_KEY + 2000


class Memory:
    """The answers asked for last, up to a number of bytes in all."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.gathered = 0
        """Bytes of large answers under way that may be kept: they wait for their readers, however slow."""
        self._gathering: set[Key] = set()
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._of_symbol: dict[str, set[Key]] = {}
        self._recent: deque[Change] = deque(maxlen=_RECENT)
        self._asked_before: OrderedDict[Key, None] = OrderedDict()
        self.cleared = 0
        """How often everything was forgotten."""

    def get(self, key: Key) -> Kept | None:
        """The answer kept for it."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def gathers(self, key: Key) -> bool:
        """Whether a large answer is to be gathered: when it is asked for again, and only once at a time."""
        again = key in self._asked_before
        self._asked_before[key] = None
        while len(self._asked_before) > _ASKED_BEFORE:
            self._asked_before.popitem(last=False)
        if not again or key in self._gathering:
            return False
        self._gathering.add(key)
        return True

    def gathered_no_more(self, key: Key, size: int) -> None:
        """So many bytes of it are let go, or are kept by now."""
        self._gathering.discard(key)
        self.gathered -= size

    def put(self, key: Key, answer: Kept, position: int, cleared: int) -> None:
        """Keep an answer that was read after a feed's position, when `cleared` was so; not if it has changed since."""
        if cleared != self.cleared or self._changed_since(position, answer.keep.depends):
            return
        self.drop(key)
        self._kept[key] = answer
        self.size += answer.size
        for symbol in answer.keep.depends:
            self._of_symbol.setdefault(symbol, set()).add(key)
        while self.size > self.capacity:
            self.drop(next(iter(self._kept)))

    def drop(self, key: Key) -> None:
        """Keep it no more."""
        found = self._kept.pop(key, None)
        if found is not None:
            self.size -= found.size
            for symbol in found.keep.depends:
                self._of_symbol[symbol].discard(key)

    def forget(self, change: Change | None) -> None:
        """Drop what a change made old; None: everything."""
        if change is None:
            self._kept.clear()
            self._of_symbol.clear()
            self._recent.clear()
            self.size = 0
            self.cleared += 1
            return
        self._recent.append(change)
        for key in list(self._of_symbol.get(change.symbol, ())):
            if _overlap(change.range, self._kept[key].keep.depends[change.symbol]):
                self.drop(key)

    def _changed_since(self, position: int, depends: Mapping[str, Range]) -> bool:
        for change in reversed(self._recent):
            if change.id <= position:
                return False
            if change.symbol in depends and _overlap(change.range, depends[change.symbol]):
                return True
        return len(self._recent) == _RECENT


def _overlap(one: Range, other: Range) -> bool:
    return one.start < other.end and other.start < one.end


class Remembering(ASGIMiddleware):
    """Sends kept answers, and keeps those whose handlers allow it."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.memory = Memory(serving.settings.cache_mb * 1_000_000)
        self._feed = Feed(serving.db, self.memory.forget)

    async def begin(self) -> None:
        """Follow the changes from now on; nothing is kept before."""
        await self._feed.look()

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Send the kept answer, or pass the request on and see whether its answer is to be kept.

        Raises what the database raises where it cannot be asked whether a kept answer still holds.
        """
        if not self.memory.capacity or scope["type"] != ScopeType.HTTP or scope["method"] != "GET":
            await next_app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        accepted = headers.get(b"accept", b""), headers.get(b"accept-encoding", b"")
        # A link to a further page names the host by which the client came.
        site = f"{scope['scheme']}:".encode() + headers.get(b"host", b"")
        key: Key = (scope["path"], scope["query_string"], *accepted, site)
        if sum(map(len, key)) > LONGEST_KEY:
            await next_app(scope, receive, send)
            return
        if self.memory.get(key) is not None:
            await self._feed.look()
            found = self.memory.get(key)
            known = headers.get(b"if-none-match")
            # Whether another tag still holds is the handler's to find out.
            if found is not None and self._is_above_the_floor(found) and (known is None or found.is_named_by(known)):
                await (_send(found, send) if known is None else _send_unchanged(found, send))
                return
        position, cleared = self._feed.position, self.memory.cleared
        if position is None:
            await next_app(scope, receive, send)
            return
        keeper = Keeper(self.memory, key, scope, send)
        try:
            await next_app(scope, receive, keeper.send)
        finally:
            keeper.give_up()
        if keeper.answer is not None:
            self.memory.put(key, keeper.answer, position, cleared)

    def _is_above_the_floor(self, found: Kept) -> bool:
        floor = self._serving.terms().floors[found.keep.stored]
        return floor is None or all(one.start >= floor for one in found.keep.depends.values())


class Keeper:
    """Listens to an answer on its way out."""

    def __init__(self, memory: Memory, key: Key, scope: Scope, send: Send) -> None:
        self._memory, self._key, self._scope, self._send = memory, key, scope, send
        self._keep: Keep | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._size = 0
        self._gathered: int | None = None
        self.answer: Kept | None = None

    async def send(self, message: Message) -> None:
        """Pass it on."""
        if message["type"] == "http.response.start":
            self._keep = self._scope["state"].get(KEEP) if message["status"] == HTTPStatus.OK else None
            self._headers = list(message["headers"])
        elif message["type"] == "http.response.body" and self._keep is not None:
            self._take(message["body"], last=not message.get("more_body", False))
        await self._send(message)

    def give_up(self) -> None:
        """Hold nothing any more but a whole answer."""
        if self._gathered is not None:
            self._memory.gathered_no_more(self._key, self._gathered)
        self._keep, self._parts, self._gathered = None, [], None

    def _take(self, part: bytes, *, last: bool) -> None:
        self._size += len(part)
        if self._size > SMALL:
            if self._gathered is None:
                if not self._memory.gathers(self._key):
                    self.give_up()
                    return
                self._gathered = 0
            more, self._gathered = self._size - self._gathered, self._size
            self._memory.gathered += more
            if self._memory.gathered > self._memory.capacity // 2:
                self.give_up()
                return
        self._parts.append(part)
        if last and self._keep is not None:
            length = (b"content-length", str(self._size).encode())
            headers = [pair for pair in self._headers if pair[0].lower() != b"content-length"]
            self.answer = Kept(keep=self._keep, headers=[*headers, length], body=b"".join(self._parts))


async def _send(found: Kept, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": list(found.headers)})
    await send({"type": "http.response.body", "body": found.body, "more_body": False})


async def _send_unchanged(found: Kept, send: Send) -> None:
    headers = [pair for pair in found.headers if pair[0] in _KEPT_WITH_304]
    await send({"type": "http.response.start", "status": 304, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
