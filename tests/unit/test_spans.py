"""Where candles of any length begin and end, against plain walks along the clocks of a zone."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bars import to_ms
from service.provider_calls.request import LAST_MS
from service.spans import UNITS, Span, Unit, parse
from service.timeframes import Timeframe
from service.zones import local_date, midnight, zone_named

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR, _DAY = 3_600_000, 86_400_000
_STEP = 30_000
"""Every change of a clock since 1970 in the zones below, and every edge of a candle, lies on a half minute."""
_CHANGES = {
    "America/New_York": ["2024-03-10 07:00", "2024-11-03 06:00", "1974-01-06 07:00", "1999-10-31 06:00"],
    "Europe/London": ["1971-10-31 02:00", "2024-03-31 01:00", "2024-10-27 01:00"],
    "Australia/Lord_Howe": ["1981-02-28 14:00", "2023-09-30 15:30", "2024-04-06 15:00"],
    "America/Havana": ["2012-04-01 05:00", "2012-11-04 05:00", "1998-10-25 05:00"],
    "America/Sao_Paulo": ["2018-11-04 03:00", "2019-02-17 02:00", "2009-10-18 03:00"],
    "America/St_Johns": ["1988-04-03 03:31", "1988-10-30 01:31", "2010-03-14 03:31", "2010-11-07 02:31"],
    "Asia/Kolkata": [],
    "Asia/Kathmandu": ["1985-12-31 18:30"],
    "UTC": [],
    "Pacific/Apia": ["2011-12-30 10:00", "2011-04-02 14:00", "2012-09-29 14:00"],
    "Africa/Monrovia": ["1972-01-07 00:44:30"],
}
_NEW_YORK = "America/New_York"


def _ms(text: str, zone: str = "UTC", *, fold: int = 0) -> int:
    """Of a time on the clocks of a zone."""
    return to_ms(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold))


def _local(ms: int, zone: str) -> str:
    return f"{(_EPOCH + timedelta(milliseconds=ms)).astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M %Z}"


def _wall(zone: str, ms: int) -> int:
    """What the clocks of a zone show, written as if it was UTC."""
    return to_ms((_EPOCH + timedelta(milliseconds=ms)).astimezone(ZoneInfo(zone)).replace(tzinfo=UTC))


def _plain_strikes(span: Span, since: int) -> Iterator[int]:
    """Slowly: the starts of candles of minutes or hours after an instant, by walking along the wall clock."""
    length = span.nominal // timedelta(milliseconds=1)
    zone = span.zone if span.wall else "UTC"
    at = since // _STEP * _STEP
    shown = _wall(zone, at)
    while True:
        at += _STEP
        expected, shown = shown + _STEP, _wall(zone, at)
        jumped_over = any(wall % length == 0 for wall in range(expected, shown, _STEP))
        if shown % length == 0 or jumped_over:
            yield at


@lru_cache(maxsize=50_000)
def _plain_first(zone: str, wall: int) -> int:
    """Slowly: the first instant at which the clocks of a zone have come to a wall-clock time, or jumped over it."""
    at = (wall - 26 * _HOUR) // _STEP * _STEP
    while _wall(zone, at) < wall:
        at += _STEP
    return at


def _plain_dates(span: Span, around: date) -> Iterator[date]:
    """The first dates of candles by the calendar, from one that surely begins before a date, without end."""
    if span.unit in {"day", "week"}:
        origin = date(1970, 1, 1) if span.unit == "day" else date(1969, 12, 29 if span.monday else 28)
        step = span.multiplier * (1 if span.unit == "day" else 7)
        first = origin + timedelta(days=((around - origin).days // step - 2) * step)
        while True:
            yield first
            first += timedelta(days=step)
    step = span.multiplier * {"month": 1, "quarter": 3, "year": 12}[span.unit]
    month = ((around.year - 1970) * 12 // step - 2) * step
    while True:
        yield date(1970 + month // 12, month % 12 + 1, 1)
        month += step


def _plain_edges(span: Span, ms: int) -> Iterator[int]:
    """The starts of candles by the calendar, from before an instant, without end; none twice."""
    last = None
    for day in _plain_dates(span, date(1970, 1, 1) + timedelta(days=ms // _DAY)):
        edge = _plain_first(span.zone, to_ms(datetime(day.year, day.month, day.day, tzinfo=UTC)) - span.shift)
        if edge != last:
            yield edge
        last = edge


def _plain(span: Span, ms: int, before: int, behind: int) -> tuple[list[int], list[int]]:
    """Starts of candles up to and including an instant (at least `before`), and `behind` of them after it."""
    if span.unit in {"minute", "hour"}:
        length = span.nominal // timedelta(milliseconds=1)
        edges = _plain_strikes(span, ms - (before + 1) * length - 4 * _HOUR - (span.zone == "Pacific/Apia") * _DAY)
    else:
        edges = _plain_edges(span, ms)
    earlier: list[int] = []
    for edge in edges:
        if edge > ms:
            return earlier, [edge, *islice(edges, behind - 1)]
        earlier.append(edge)
    raise AssertionError


zones = st.sampled_from(sorted(_CHANGES))


@st.composite
def moments(draw: st.DrawFn, zone: str) -> int:
    """Instants from 1970 to 2038, often near a change of the clocks of a zone."""
    anywhere = st.integers(10 * _DAY, 68 * 365 * _DAY)
    changes = [_ms(text) for text in _CHANGES[zone]]
    if not changes:
        return draw(anywhere)
    near = st.tuples(st.sampled_from(changes), st.integers(-30 * _HOUR // _STEP, 30 * _HOUR // _STEP))
    return draw(near.map(lambda drawn: drawn[0] + drawn[1] * _STEP) | near.map(lambda drawn: drawn[0] - 1) | anywhere)


@st.composite
def spans_and_moments(draw: st.DrawFn, spans: st.SearchStrategy[Span]) -> tuple[Span, int]:
    span = draw(spans)
    return span, draw(moments(span.zone))


_clock_spans = st.builds(
    Span,
    multiplier=st.sampled_from([1, 5, 7, 15, 30, 45, 60, 65, 90, 120, 180, 240, 360, 480, 720, 1440]),
    unit=st.just("minute"),
    zone=zones,
    wall=st.booleans(),
)
_calendar_spans = st.builds(
    Span,
    multiplier=st.integers(1, 4) | st.just(7),
    unit=st.sampled_from([unit for unit in UNITS if unit not in {"minute", "hour"}]),
    zone=zones,
    monday=st.booleans(),
    shift=st.sampled_from([0, 0, 7 * _HOUR, 30 * 60_000, -2 * _HOUR]),
)


def _agrees(span: Span, ms: int) -> None:
    """Every method says what the plain walk says around an instant."""
    earlier, later = _plain(span, ms, 2, 3)
    floor, after = earlier[-1], later[0]
    assert (span.floor(ms), span.after(ms)) == (floor, after)
    assert (span.ceil(ms), span.ceil(floor)) == (ms if ms == floor else after, floor)
    edges = [*earlier[-2:], *later]
    assert span.edges(edges[0], edges[-1]).tolist() == edges[:-1]
    assert span.edges(edges[0] + 1, edges[-1] + 1).tolist() == edges[1:]
    assert span.ends(np.array(edges[:-1], np.int64)).tolist() == edges[1:]
    assert [span.forward(ms, count) for count in range(4)] == edges[1:]
    assert [span.back(ms, count) for count in range(2)] == [floor, edges[0]]
    ts = np.array(sorted([ms, *edges, *(edge - 1 for edge in edges[1:])]), np.int64)
    assert span.starts(ts).tolist() == [max(edge for edge in edges if edge <= at) for at in ts.tolist()]


@given(spans_and_moments(_clock_spans))
def test_minutes_and_hours_follow_the_clock(drawn: tuple[Span, int]) -> None:
    """Of the zone, or UTC: a candle begins where it shows a multiple, or jumps forward over or onto one."""
    _agrees(*drawn)


@given(spans_and_moments(_calendar_spans))
def test_days_and_longer_spans_follow_the_calendar(drawn: tuple[Span, int]) -> None:
    """A candle begins with the first instant of its first date; an instant belongs to the latest that has begun."""
    _agrees(*drawn)


@given(zones.flatmap(lambda zone: st.tuples(st.just(zone), moments(zone))))
def test_a_date_begins_with_its_first_instant(drawn: tuple[str, int]) -> None:
    zone, ms = drawn
    day = local_date(zone, ms)
    assert midnight(zone, day) == _plain_first(zone, (day - date(1970, 1, 1)).days * _DAY)
    assert midnight(zone, day) <= ms


any_span = st.builds(
    Span,
    multiplier=st.integers(1, 40) | st.integers(1, 10**12) | st.integers(1, 10**30),
    unit=st.sampled_from(UNITS),
    zone=zones,
    wall=st.booleans(),
    monday=st.booleans(),
    shift=st.integers(-_DAY, _DAY),
)


@given(ms=st.integers(0, LAST_MS - 1), span=any_span)
def test_candles_tile_the_time(ms: int, span: Span) -> None:
    """Any instant lies within its candle, and the next begins where it ends, however long they are."""
    start, end = span.floor(ms), span.after(ms)
    assert start <= ms < end
    assert span.nominal > timedelta()
    if 0 <= start < end < LAST_MS:
        assert (span.floor(end - 1), span.after(start), span.floor(end)) == (start, end, end)
        assert (span.forward(ms, 1), span.back(end, 1)) == (end, start)


@given(
    times=st.lists(st.integers(0, 60 * 366 * 1440), min_size=1, max_size=30, unique=True),
    span=any_span.filter(lambda span: span.multiplier < 41),
)
def test_starts_and_ends_of_many_are_those_of_each(times: list[int], span: Span) -> None:
    """The fast way for columns agrees with the way for one instant."""
    ts = np.array(sorted(times), np.int64) * 60_000
    assert span.starts(ts).tolist() == [span.floor(ms) for ms in ts.tolist()]
    assert span.ends(ts).tolist() == [span.after(ms) for ms in ts.tolist()]


@given(any_span.filter(lambda span: span.multiplier < 41), st.integers(0, LAST_MS // 2), st.integers(0, 200))
def test_going_back_undoes_going_forward(span: Span, ms: int, count: int) -> None:
    """By exactly as many candles as lie between, within the years that are told apart."""
    count = min(count, timedelta(days=365 * 1500) // span.nominal)
    later = span.forward(ms, count)
    assert len(span.edges(span.floor(ms), later)) == count
    assert span.back(later, count) == span.floor(ms)


@pytest.mark.parametrize("unit", UNITS)
def test_no_instants_have_no_candles(unit: Unit) -> None:
    """Empty columns and ranges stay empty."""
    none = np.empty(0, np.int64)
    for zone in ("UTC", _NEW_YORK):
        span = Span(multiplier=1, unit=unit, zone=zone, wall=True)
        assert not len(span.starts(none))
        assert not len(span.ends(none))
        assert not len(span.edges(_DAY, _DAY))
        assert not len(span.edges(3 * _DAY, _DAY))


@pytest.mark.parametrize("span", [parse("10y"), parse("10y", _NEW_YORK), parse("366d"), parse("8783h", _NEW_YORK)])
def test_beyond_1900_years_no_candles_are_told_apart(span: Span) -> None:
    """So that any number of long ones can be asked for."""
    now = _ms("2024-05-15")
    assert (span.back(now, 50_000), span.forward(now, 50_000)) == (-700_000 * _DAY, 700_000 * _DAY)


@pytest.mark.parametrize(
    ("multiplier", "unit", "start", "end"),
    [
        (1, "minute", "2024-05-15 10:17", "2024-05-15 10:18"),
        (15, "minute", "2024-05-15 10:15", "2024-05-15 10:30"),
        (4, "hour", "2024-05-15 08:00", "2024-05-15 12:00"),
        (1, "day", "2024-05-15", "2024-05-16"),
        (1, "week", "2024-05-12", "2024-05-19"),
        (1, "month", "2024-05-01", "2024-06-01"),
        (1, "quarter", "2024-04-01", "2024-07-01"),
        (1, "year", "2024-01-01", "2025-01-01"),
        (10, "year", "2020-01-01", "2030-01-01"),
    ],
)
def test_the_provider_s_candles_are_counted_in_utc_and_weeks_from_sunday(
    multiplier: int, unit: Unit, start: str, end: str
) -> None:
    """Wednesday 2024-05-15 10:17:30 UTC snaps to the candle that holds it."""
    span, instant = Span(multiplier=multiplier, unit=unit), _ms("2024-05-15 10:17:30")
    assert (span.floor(instant), span.after(instant)) == (_ms(start), _ms(end))


@pytest.mark.parametrize(
    ("text", "start"),
    [("1w", "2024-05-13"), ("7d", "2024-05-09"), ("2w", "2024-05-06"), ("3mo", "2024-04-01"), ("5d", "2024-05-12")],
)
def test_our_weeks_start_on_monday_and_days_are_counted_from_1970(text: str, start: str) -> None:
    """Seven days are no week: 1970-01-01 was a Thursday."""
    assert parse(text).floor(_ms("2024-05-15 10:17")) == _ms(start)


def test_days_of_new_york_have_23_and_25_hours() -> None:
    """A day follows the clocks of its zone through both changes."""
    span = Span(multiplier=1, unit="day", zone=_NEW_YORK)
    for day, hours in (("2024-03-10 12:00", 23), ("2024-11-03 12:00", 25)):
        assert span.after(_ms(day)) - span.floor(_ms(day)) == hours * _HOUR
    assert span.floor(_ms("2024-05-15 03:00")) == _ms("2024-05-14", _NEW_YORK)


def test_days_may_end_at_five_in_the_afternoon() -> None:
    """With a shift of seven hours, in winter, in summer and on the day of the change."""
    span = Span(multiplier=1, unit="day", zone=_NEW_YORK, shift=7 * _HOUR)
    for inside in ("2024-03-10 16:59", "2024-03-09 17:00"):
        assert span.floor(_ms(inside, _NEW_YORK)) == _ms("2024-03-09 17:00", _NEW_YORK)
        assert span.after(_ms(inside, _NEW_YORK)) == _ms("2024-03-10 17:00", _NEW_YORK)
    week = Span(multiplier=1, unit="week", monday=True, zone=_NEW_YORK, shift=7 * _HOUR)
    assert week.floor(_ms("2024-05-15 12:00")) == _ms("2024-05-12 17:00", _NEW_YORK)


def _candles(text: str, zone: str, start: str, end: str) -> list[str]:
    """The starts of candles between two local times, as the clocks there show them."""
    return [_local(int(ms), zone)[11:] for ms in parse(text, zone).edges(_ms(start, zone), _ms(end, zone))]


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("1h", ["00:00 EDT", "01:00 EDT", "01:00 EST", "02:00 EST", "03:00 EST", "04:00 EST"]),
        ("2h", ["00:00 EDT", "02:00 EST", "04:00 EST"]),
        ("4h", ["00:00 EDT", "04:00 EST"]),
    ],
)
def test_where_clocks_go_back_an_hour_comes_twice(text: str, begins: list[str]) -> None:
    """Candles of one hour come twice, longer ones last an hour longer."""
    assert _candles(text, _NEW_YORK, "2024-11-03 00:00", "2024-11-03 05:00") == begins


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("1h", ["00:00 EST", "01:00 EST", "03:00 EDT", "04:00 EDT"]),
        ("2h", ["00:00 EST", "03:00 EDT", "04:00 EDT"]),
        ("4h", ["00:00 EST", "04:00 EDT"]),
    ],
)
def test_where_clocks_go_forward_a_candle_begins_at_the_jump(text: str, begins: list[str]) -> None:
    """If the jump goes over or onto the time at which one would begin."""
    assert _candles(text, _NEW_YORK, "2024-03-10 00:00", "2024-03-10 05:00") == begins


def test_clocks_that_move_by_half_an_hour_keep_whole_hours() -> None:
    """On Lord Howe Island the hour of the change lasts 30 minutes in spring and 90 in autumn."""
    zone = "Australia/Lord_Howe"
    spring = _candles("1h", zone, "2023-10-01 00:00", "2023-10-01 04:00")
    assert spring == ["00:00 +1030", "01:00 +1030", "02:30 +11", "03:00 +11"]
    autumn = _candles("1h", zone, "2024-04-07 00:00", "2024-04-07 03:00")
    assert autumn == ["00:00 +11", "01:00 +11", "02:00 +1030"]


def test_a_skipped_midnight_starts_the_day_at_the_jump() -> None:
    """São Paulo on 2018-11-04: after 23:59 came 01:00."""
    zone = "America/Sao_Paulo"
    day = parse("1d", zone)
    assert day.floor(_ms("2018-11-04 12:00", zone)) == _ms("2018-11-04 01:00", zone) == _ms("2018-11-04 03:00")
    assert midnight(zone, date(2018, 11, 4)) == _ms("2018-11-04 03:00")


def test_clocks_that_go_back_over_midnight_do_not_reopen_the_day_before() -> None:
    """St. John's on 1988-10-30: at 00:01 it was 23:01 again, and those 59 minutes belong to the new day."""
    zone = "America/St_Johns"
    day, start = parse("1d", zone), _ms("1988-10-30 00:00", zone)
    assert day.floor(_ms("1988-10-29 23:30", zone, fold=1)) == start
    assert day.floor(_ms("1988-10-29 23:30", zone)) == _ms("1988-10-29 00:00", zone)
    assert day.after(start) == _ms("1988-10-31 00:00", zone)


def test_a_midnight_that_comes_twice_starts_the_day_once() -> None:
    """Havana on 2012-11-04: at 01:00 it was 00:00 again. 24 hours are that same day."""
    zone = "America/Havana"
    for text in ("1d", "24h"):
        assert _candles(text, zone, "2012-11-04 00:00", "2012-11-05 01:00") == ["00:00 CDT", "00:00 CST"]
        assert parse(text, zone).floor(_ms("2012-11-04 00:30", zone, fold=1)) == _ms("2012-11-04 00:00", zone)


def test_a_skipped_day_has_no_candle() -> None:
    """Apia crossed the date line: 2011-12-31 followed 2011-12-29."""
    zone = "Pacific/Apia"
    day = parse("1d", zone)
    assert day.after(_ms("2011-12-29 12:00", zone)) == _ms("2011-12-31 00:00", zone)
    assert day.forward(_ms("2011-12-28 12:00", zone), 2) == _ms("2011-12-31 00:00", zone)
    assert day.back(_ms("2012-01-01 12:00", zone), 2) == _ms("2011-12-29 00:00", zone)


def test_offsets_of_seconds_leave_ascending_candles() -> None:
    """Monrovia was 44 minutes 30 seconds behind UTC; at noon local it jumped to UTC."""
    edges = parse("1h", "Africa/Monrovia").edges(_ms("1972-01-06 23:00"), _ms("1972-01-07 03:00"))
    texts = [_local(ms, "UTC")[11:16] for ms in edges.tolist()]
    assert texts == ["23:44", "00:44", "01:00", "02:00"]
    assert all(low < high for low, high in pairwise(edges.tolist()))


@pytest.mark.parametrize(
    ("text", "zone", "stored", "native"),
    [
        ("1m", "UTC", "1m", True),
        ("7m", "UTC", "1m", False),
        ("10m", "UTC", "5m", False),
        ("65m", _NEW_YORK, "5m", False),
        ("30m", "UTC", "15m", False),
        ("1h", "UTC", "1h", True),
        ("1h", _NEW_YORK, "1h", True),
        ("1h", "Asia/Kolkata", "15m", False),
        ("15m", "Asia/Kathmandu", "15m", True),
        ("2h", "UTC", "1h", False),
        ("4h", "UTC", "4h", True),
        ("4h", _NEW_YORK, "1h", False),
        ("8h", "UTC", "4h", False),
        ("24h", "UTC", "1d", True),
        ("1440m", "UTC", "1d", True),
        ("1d", "UTC", "1d", True),
        ("1d", _NEW_YORK, "1h", False),
        ("1d", "Asia/Kolkata", "15m", False),
        ("1d", "Asia/Kathmandu", "15m", False),
        ("1d", "Etc/GMT-4", "4h", False),
        ("1w", "UTC", "1d", False),
        ("1mo", "UTC", "1d", False),
        ("1mo", "Europe/London", "1h", False),
        ("1h", "America/St_Johns", "1m", False),
        ("1m", "Africa/Monrovia", "1m", False),
    ],
)
def test_a_span_is_made_from_the_largest_stored_candles_that_fit(
    text: str,
    zone: str,
    stored: str,
    native: bool,  # noqa: FBT001
) -> None:
    span = parse(text, zone)
    assert (span.stored.value, span.native) == (stored, native)


def test_a_shift_counts_for_what_a_span_is_made_from() -> None:
    """Days that end at 17:00 UTC hold whole hours; those that end at 18:50 hold whole five minutes."""
    for shift, stored in ((7 * _HOUR, "1h"), (8 * _HOUR, "4h"), (310 * 60_000, "5m"), (_DAY, "1d")):
        span = Span(multiplier=1, unit="day", shift=shift)
        assert (span.stored.value, span.native) == (stored, stored == "1d")


@given(spans_and_moments(_clock_spans | _calendar_spans))
def test_every_edge_is_one_of_the_stored_candles(drawn: tuple[Span, int]) -> None:
    """So that no stored candle belongs to two; and of a native span every stored candle is one."""
    span, ms = drawn
    begin, bucket = span.floor(ms), span.stored.length // timedelta(milliseconds=1)
    edges = span.edges(begin, span.forward(begin, 40))
    if span.zone != "Africa/Monrovia":
        assert not (edges % bucket).any()
    if span.native:
        assert edges.tolist() == list(range(begin, begin + 40 * bucket, bucket))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((spelling, Timeframe.parse(spelling).value) for spelling in Timeframe.spellings()),
        ("1mo", "1mo"),
        ("1MO", "1mo"),
        ("2Months", "2mo"),
        ("90MIN", "90m"),
        ("65minutes", "65m"),
        ("60m", "1h"),
        ("120m", "2h"),
        ("240m", "4h"),
        ("1440m", "1d"),
        ("24h", "1d"),
        ("48hours", "2d"),
        ("36H", "36h"),
        (" 2d ", "2d"),
        ("7d", "7d"),
        ("2Weeks", "2w"),
        ("4q", "4q"),
        ("1quarter", "1q"),
        ("10years", "10y"),
        ("Daily", "1d"),
        ("527040m", "366d"),
        ("3660d", "3660d"),
    ],
)  # fmt: skip
def test_a_length_has_many_spellings_and_one_name(text: str, name: str) -> None:
    """Case is ignored, but for the capital M of a month; the name reads as the same span."""
    span = parse(text, _NEW_YORK)
    assert span.name == name
    assert parse(span.name, _NEW_YORK) == span
    assert (span.zone, span.wall, span.monday, span.shift) == (_NEW_YORK, True, True, 0)


@pytest.mark.parametrize(
    "text",
    ["", "m", "h1", "5", "0m", "00d", "-1m", "1.5h", "1 h", "1h2m", "1s", "1fortnight", "٣m", "1\uff4d", "527041m",
     "8785h", "3661d", "523w", "123mo", "41q", "11y", "999999999y", "9" * 5000 + "m", "weekly", "1m\x00"],
)  # fmt: skip
def test_what_is_no_length_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as 5m, 2h, 1d, 1w, 1mo; minutes and hours up to 366 days") as refused:
        parse(text)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("text", "nominal"),
    [("90m", timedelta(minutes=90)), ("36h", timedelta(hours=36)), ("2w", timedelta(days=14)),
     ("2mo", timedelta(days=60)), ("1q", timedelta(days=90)), ("2y", timedelta(days=730))],
)  # fmt: skip
def test_a_length_by_convention(text: str, nominal: timedelta) -> None:
    assert parse(text, _NEW_YORK).nominal == nominal


@pytest.mark.parametrize(
    ("text", "zone"),
    [("UTC", "UTC"), ("utc", "UTC"), ("america/new_york", _NEW_YORK), (" EUROPE/London ", "Europe/London")],
)
def test_a_zone_is_named_however_its_letters_are_cased(text: str, zone: str) -> None:
    assert zone_named(text) == zone
    assert parse("1d", text).zone == zone


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("New York", "did you mean America/New_York"),
        ("Amerika/New_York", "did you mean America/New_York"),
        ("Kolkatta", "did you mean Asia/Kolkata"),
        ("localtime", "IANA name"),
        ("Factory", "IANA name"),
        ("", "IANA name"),
        ("../../etc/passwd", "IANA name"),
        ("\x00", "IANA name"),
        ("x" * 100_000, "IANA name"),
    ],
)
def test_an_unknown_zone_is_refused_with_the_nearest_names(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as refused:
        zone_named(text)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("text", ["1M", "15M", " 3M "])
def test_a_capital_m_is_refused_for_it_means_a_month_to_some(text: str) -> None:
    number = text.strip()[:-1]
    with pytest.raises(ValueError, match=f"write {number}m or {number}mo"):
        parse(text)
