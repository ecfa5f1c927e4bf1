"""ETags: an answer that only a correction can change is named by the last change before it was read."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import AsyncConnection

from service import windows
from service.proof import Head
from service.ranges import Range
from service.timeframes import EPOCH
from service.windows import Revision

FORM = "1"
"""To be counted up when the same candles are written otherwise: tags of before do not hold any more."""
MOST_TAGS = 8
"""Of one If-None-Match that are looked at."""
_TAG = re.compile(r'(?:W/)?"([0-9a-f]{1,15})\.([0-9a-f]{1,15})\.([0-9a-f]{1,15})\.([a-z0-9-]{1,40})"')


def dependencies(heads: Sequence[Head]) -> Mapping[str, Range] | None:
    """What each symbol's part depends on; None where one of them may change by itself."""
    found = {head.symbol: head.depends for head in heads if head.depends is not None}
    return found if len(found) == len(heads) else None


def entity_tag(heads: Sequence[Head], variant: str) -> str:
    """The tag of an answer made of heads that were read in one snapshot; variant: its form and coding."""
    last = max((head.state.revision for head in heads), key=lambda one: one.change)
    changed = 0 if last.changed_at is None else _microseconds(last.changed_at)
    return f'"{_microseconds(last.installed_at):x}.{last.change:x}.{changed:x}.{FORM}{variant}"'


async def still_holds(
    conn: AsyncConnection[Any], if_none_match: str, tag: str, variant: str, depends: Mapping[str, Range]
) -> str | None:
    """The tag that the header names and that still holds, if any; `tag` is the one of today's answer."""
    if if_none_match.strip() == "*":
        return tag
    for found in list(_TAG.finditer(if_none_match))[:MOST_TAGS]:
        installed, change, changed = (int(number, 16) for number in found.groups()[:3])
        since = Revision(
            installed_at=_instant(installed), change=change, changed_at=_instant(changed) if changed else None
        )
        if found[4] == FORM + variant and await windows.unchanged(conn, since, depends):
            return found[0].removeprefix("W/")
    return None


def _microseconds(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def _instant(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=min(microseconds, _LAST))


_LAST = _microseconds(datetime(9000, 1, 1, tzinfo=UTC))
