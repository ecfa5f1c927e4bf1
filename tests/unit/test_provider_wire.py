"""A reply is either understood to the last bar or refused; nothing in between reaches the store."""

import json
import math
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from service.bars import MINUTE_MS, to_ms
from service.errors import BadPayload
from service.provider.wire import Page, closed, decode, join

START = datetime(2025, 2, 25, 9, 0, tzinfo=UTC)
END = START + timedelta(hours=1)
T0 = to_ms(START)


def bar(minute: int = 0, **changes: object) -> dict[str, Any]:
    """A possible bar of the provider, with changes; "missing" leaves a field out."""
    whole = {"v": 10, "vw": 1.2, "o": 1.1, "c": 1.3, "h": 1.4, "l": 1.0, "t": T0 + minute * MINUTE_MS, "n": 3}
    return {name: value for name, value in (whole | changes).items() if value != "missing"}


def body(*bars: object, **fields: object) -> bytes:
    """A reply as json.dumps writes it: a NaN in it becomes the literal NaN."""
    reply = {"ticker": "AAPL", "status": "OK", "request_id": "r1", "resultsCount": len(bars), "results": list(bars)}
    reply |= fields
    return json.dumps({name: value for name, value in reply.items() if value != "missing"}).encode()


def read(reply: bytes) -> Page:
    """Decode a reply about the hour of these tests."""
    return decode(reply, ticker="AAPL", start=START, end=END)


def test_bar_becomes_columns() -> None:
    """Every field of a bar arrives in its column, and nothing is impossible about it."""
    page = read(body(bar(), next_url="https://x/y"))
    bars = page.bars
    assert (bars.ts[0], bars.open[0], bars.high[0], bars.low[0], bars.close[0]) == (T0, 1.1, 1.4, 1.0, 1.3)
    assert (bars.volume[0], bars.vwap[0], bars.trades[0]) == (10.0, 1.2, 3)
    assert [column.dtype for column in (bars.ts, bars.trades, bars.volume)] == [np.int64, np.int64, np.float64]
    assert (page.impossible, page.next_url, page.delayed) == ((), "https://x/y", False)


@pytest.mark.parametrize("absent", ["missing", None])
def test_absent_volume_is_no_fault(absent: str | None) -> None:
    """An index has neither volume nor vwap nor trades, left out or null: NaN and -1 stand for them."""
    page = read(body(bar(v=absent, vw=absent, n=absent)))
    assert math.isnan(page.bars.volume[0])
    assert math.isnan(page.bars.vwap[0])
    assert page.bars.trades[0] == -1
    assert page.impossible == ()


def test_volume_in_scientific_notation() -> None:
    """A volume written 7.07e+07 is read as that number."""
    reply = body(bar()).replace(b'"v": 10', b'"v": 7.07e+07')
    assert read(reply).bars.volume.tolist() == [70_700_000.0]


@pytest.mark.parametrize("fields", [{"results": "missing", "resultsCount": 0}, {"results": []}])
def test_nothing_found_is_empty(fields: dict[str, Any]) -> None:
    """A reply without results that claims none is an empty page."""
    page = read(body(**fields))
    assert len(page.bars) == 0
    assert page.next_url is None


@pytest.mark.parametrize("count", [0, 770, None])
def test_wrong_count_is_harmless(count: int | None) -> None:
    """The number in resultsCount is not trusted where results are there."""
    assert len(read(body(bar(), resultsCount=count)).bars) == 1


def test_delayed_is_success() -> None:
    """The status DELAYED is success, and is passed on."""
    assert read(body(bar(), status="DELAYED")).delayed


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (body(results="missing", resultsCount=3), "no results"),
        (body(resultsCount=3), "no results"),
        (body(results=None), "results"),
        (body(bar(), status="ERROR", error="boom"), "'ERROR' in a 200 reply: boom"),
        (body(bar(), status="NOT_AUTHORIZED", message="no plan"), "no plan"),
        (body(bar(), status="missing"), "status"),
        (body(bar(), ticker="aapl"), "'aapl', not 'AAPL'"),
        (body(bar(t=T0 + 1)), "whole minute"),
        (body(bar(-1)), "outside the range"),
        (body(bar(60)), "outside the range"),
        (body(bar(t=float(T0))), "results[0].t"),
        (body(bar(t="missing")), "`t`"),
        (body(bar(t=2**63)), "results[0].t"),
        (body(bar(o="missing")), "`o`"),
        (body(bar(o="1.1")), "results[0].o"),
        (body(bar(n=2**63)), "results[0].n"),
        (body(bar(o=math.nan, n="1")), "results[0].n"),
        (body(bar())[:-40], "not JSON"),
        (body(bar(o=math.nan))[:-40], "not JSON"),
        (b"", "not JSON"),
        (b"<html>Bad Gateway</html>", "not JSON"),
        (b"[]", "object"),
        (b'{"x":' + b"[" * 100_000, "not JSON"),
        (body(bar(v=-1)).replace(b"AAPL", b'AAPL", "x": "\xff'), "not JSON"),
    ],
)
def test_untrustworthy_reply_is_refused(reply: bytes, words: str) -> None:
    """A body that is broken, contradicts itself or answers another question raises, and the message says why."""
    with pytest.raises(BadPayload) as caught:
        read(reply)
    assert words in str(caught.value)


def test_refusal_carries_request_id() -> None:
    """The provider's id of a refused reply is in the error."""
    with pytest.raises(BadPayload) as caught:
        read(body(bar(60)))
    assert caught.value.request_id == "r1"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"o": None}, "a price is not a finite number"),
        ({"c": math.nan}, "a price is not a finite number"),
        ({"h": math.inf}, "a price is not a finite number"),
        ({"l": -math.inf}, "a price is not a finite number"),
        ({"h": 0.9}, "high is below low; open is outside low..high; close is outside low..high"),
        ({"o": 1.5}, "open is outside low..high"),
        ({"c": 0.5}, "close is outside low..high"),
        ({"v": -1}, "volume is negative or not finite"),
        ({"v": math.nan}, "volume is negative or not finite"),
        ({"vw": math.inf}, "vwap is not finite"),
        ({"n": -1}, "number of trades is negative"),
    ],
)
def test_impossible_bar_is_told_apart(changes: dict[str, Any], reason: str) -> None:
    """A bar that cannot have happened stays in the columns and is named with its minute and its reasons."""
    page = read(body(bar(0), bar(1, **changes), bar(2)))
    assert len(page.bars) == 3
    assert [(found.ts, found.reason) for found in page.impossible] == [(T0 + MINUTE_MS, reason)]


def test_impossible_bar_is_quoted() -> None:
    """The raw bar is valid JSON with sorted keys, unknown fields and all; NaN stands in it as a string."""
    raw = read(body(bar(o=math.nan, otc=True))).impossible[0].raw
    assert json.loads(raw) == bar(o="NaN", otc=True)
    assert list(json.loads(raw)) == sorted(json.loads(raw))


def test_vwap_outside_high_and_low_is_possible() -> None:
    """The provider's vwap may lie outside the bar; that is no reason to doubt it."""
    assert read(body(bar(vw=9.9))).impossible == ()


def test_results_are_sorted() -> None:
    """Results in any order come out ascending, each price with its time; so do the impossible ones."""
    page = read(body(bar(2, o=1.2), bar(1, v=-1), bar(0, v=-2)))
    assert ((page.bars.ts - T0) // MINUTE_MS).tolist() == [0, 1, 2]
    assert page.bars.open.tolist() == [1.1, 1.1, 1.2]
    assert [found.ts for found in page.impossible] == [T0, T0 + MINUTE_MS]


def test_identical_duplicates_collapse() -> None:
    """The same bar twice is one bar, even where its fields are absent or impossible."""
    page = read(body(bar(1, v=None, o=None), bar(0), bar(1, v=None, o=None), bar(0)))
    assert ((page.bars.ts - T0) // MINUTE_MS).tolist() == [0, 1]
    assert len(page.impossible) == 1


@pytest.mark.parametrize("changes", [{"o": 1.2}, {"v": None}, {"n": 4}])
def test_differing_duplicates_are_refused(changes: dict[str, Any]) -> None:
    """Two different bars of one minute cannot both be true."""
    with pytest.raises(BadPayload, match="two different bars of 2025-02-25 09:01 UTC"):
        read(body(bar(1), bar(0), bar(1, **changes)))


def test_pages_are_joined() -> None:
    """Joined pages hold the bars of all, overlaps once, and are delayed if one was."""
    first = read(body(bar(0), bar(1, v=-1), next_url="https://x/y"))
    second = read(body(bar(1, v=-1), bar(2), status="DELAYED"))
    page = join([first, second])
    assert ((page.bars.ts - T0) // MINUTE_MS).tolist() == [0, 1, 2]
    assert len(page.impossible) == 1
    assert (page.delayed, page.next_url, join([first]).next_url) == (True, None, None)


def test_contradiction_across_pages_is_refused() -> None:
    """Two pages that disagree about a minute are refused."""
    with pytest.raises(BadPayload, match="across pages"):
        join([read(body(bar(0))), read(body(bar(0, o=1.2)))])


def test_open_bars_are_dropped() -> None:
    """A bar is kept from the very end of its minute on, be it possible or not."""
    page = read(body(bar(0), bar(1, v=-1)))
    nearly = closed(page, START + timedelta(seconds=119, microseconds=999_999))
    assert (len(nearly.bars), nearly.impossible) == (1, ())
    after = closed(page, START + timedelta(seconds=120))
    assert (len(after.bars), len(after.impossible)) == (2, 1)


def test_large_reply_is_quick() -> None:
    """40,000 bars become columns in far less time than the provider takes to send them."""
    reply = body(*(bar(minute) for minute in range(40_000)))
    began = time.process_time()
    page = decode(reply, ticker="AAPL", start=START, end=START + timedelta(days=30))
    assert time.process_time() - began < 0.5
    assert len(page.bars) == 40_000
