"""Good pages turned bad: each function spoils one thing in the decoded body of an answer with bars."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from service.bars import MINUTE_MS

Page = dict[str, Any]
_NAN = "@NaN@"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a spoiler needs to know about the request."""

    url: str
    """Its own absolute address, without the key."""
    start: int
    end: int
    """The range `[start, end)`, Unix ms."""
    ascending: bool


Spoiler = Callable[[Page, Asked, random.Random], None]


def spoil(body: bytes, kind: str, asked: Asked, chance: random.Random) -> bytes:
    """The body with the fault in it; a page without bars stays as it is where the fault needs one."""
    page = msgspec.json.decode(body)
    if not page.get("results") and kind != "page_cycle":
        return body
    SPOILERS[kind](page, asked, chance)
    return msgspec.json.encode(page).replace(f'"{_NAN}"'.encode(), b"NaN")


def _wrong_types(page: Page, _: Asked, chance: random.Random) -> None:
    """A price or the time as a text."""
    bar, field = chance.choice(page["results"]), chance.choice("ohlct")
    bar[field] = str(bar[field])


def _page_cycle(page: Page, asked: Asked, _: random.Random) -> None:
    """The next page is this one again."""
    page["next_url"] = asked.url


def _off_minute(page: Page, _: Asked, chance: random.Random) -> None:
    """A bar that does not start on a minute."""
    chance.choice(page["results"])["t"] += chance.randrange(1, MINUTE_MS)


def _out_of_range(page: Page, asked: Asked, chance: random.Random) -> None:
    """A bar that was not asked for, in its right place."""
    before = chance.choice((True, False))
    distance = chance.randrange(60) * MINUTE_MS
    bar = {**page["results"][0], "t": asked.start - MINUTE_MS - distance if before else asked.end + distance}
    _insert(page, 0 if before == asked.ascending else len(page["results"]), bar)


def _differing_duplicate(page: Page, _: Asked, chance: random.Random) -> None:
    """A minute twice, with other prices."""
    place = chance.randrange(len(page["results"]))
    bar = page["results"][place]
    _insert(page, place + 1, {**bar, **{name: bar[name] * 1.001 for name in "ohlc"}})


def _identical_duplicate(page: Page, _: Asked, chance: random.Random) -> None:
    """A minute twice, the same both times."""
    place = chance.randrange(len(page["results"]))
    _insert(page, place + 1, dict(page["results"][place]))


def _nan_price(page: Page, _: Asked, chance: random.Random) -> None:
    """A price that is no number."""
    chance.choice(page["results"])[chance.choice("ohlc")] = _NAN


def _high_below_low(page: Page, _: Asked, chance: random.Random) -> None:
    """A bar whose high is below its low."""
    bar = chance.choice(page["results"])
    bar["h"], bar["l"] = bar["l"] * 0.999, bar["h"]


def _close_outside(page: Page, _: Asked, chance: random.Random) -> None:
    """A bar that opens or closes outside its high and low."""
    bar = chance.choice(page["results"])
    bar[chance.choice("oc")] = chance.choice((bar["h"] * 1.01, bar["l"] * 0.99))


def _wrong_count(page: Page, _: Asked, chance: random.Random) -> None:
    """A resultsCount that is not the number of bars."""
    page["resultsCount"] += chance.randrange(1, 100)


def _vw_outside(page: Page, _: Asked, chance: random.Random) -> None:
    """An average price outside of high and low, where the bar has one."""
    bar = chance.choice(page["results"])
    if "vw" in bar:
        bar["vw"] = bar["h"] * 1.02


def _insert(page: Page, place: int, bar: Mapping[str, Any]) -> None:
    page["results"].insert(place, bar)
    page["resultsCount"] += 1
    page["count"] += 1


SPOILERS: Mapping[str, Spoiler] = {
    "wrong_types": _wrong_types,
    "page_cycle": _page_cycle,
    "off_minute": _off_minute,
    "out_of_range": _out_of_range,
    "differing_duplicate": _differing_duplicate,
    "identical_duplicate": _identical_duplicate,
    "nan_price": _nan_price,
    "high_below_low": _high_below_low,
    "close_outside": _close_outside,
    "wrong_count": _wrong_count,
    "vw_outside": _vw_outside,
}
"""By kind. Of these `identical_duplicate`, `wrong_count` and `vw_outside` are to be put up with by a client."""
