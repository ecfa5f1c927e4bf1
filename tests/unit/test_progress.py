"""How a backfill tells what it does: on a terminal, in a log, and at its end."""

import io
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from service.coverage import Ledger, Piece, Slice
from service.plan import Plan, Summary
from service.progress import Bars, Lines, announce, summarize, watcher
from service.ranges import Range, Ranges
from service.store import Stored

START = datetime(2024, 3, 1, tzinfo=UTC)
ASKED = Range(START, START + timedelta(days=40))
HALVES = (Range(ASKED.start + timedelta(days=20), ASKED.end), Range(ASKED.start, ASKED.start + timedelta(days=20)))
REASON = "the plan does not cover it [GET /v2/aggs/ticker/X:BTCUSD]"


def piece(symbol: str, half: int = 0) -> Piece:
    return Piece(symbol=symbol, ticker=symbol, range=HALVES[half])


def plan(*symbols: str, rate: int | None = 5) -> Plan:
    whole = Ranges([ASKED])
    ledgers = tuple(
        Ledger(
            symbol=symbol,
            ticker=symbol,
            asset_type="crypto",
            wanted=whole,
            covered=Ranges(),
            unavailable=Ranges(),
            first_bar=None,
            last_bar=None,
        )
        for symbol in symbols
    )
    slices = tuple(
        Slice(start=HALVES[half].start, pieces=tuple(piece(symbol, half) for symbol in symbols)) for half in (0, 1)
    )
    return Plan(asked=ASKED, ledgers=ledgers, slices=slices if symbols else (), rate_limit=rate)


def summary(**failures: str) -> Summary:
    stored = Stored(new=86_400, changed=1, unchanged=1_000, rejected=2)
    return Summary(stored=stored, requests=1_234, seconds=12.34, failures=failures)


def test_before_it_starts_a_backfill_says_how_much_it_will_fetch_and_how_long_that_takes() -> None:
    """Twenty symbols of two pieces each at five calls a minute: the first five go at once."""
    line = announce(plan(*(f"S{number}" for number in range(20))))
    assert "20 symbols, [2024-03-01 00:00, 2024-04-10 00:00) UTC: 40 requests" in line
    assert "about 1,152,000 bars" in line
    assert "about 7 min at 5 calls a minute" in line


def test_a_short_backfill_says_that_it_is_short() -> None:
    assert "under a minute of waiting at 5 calls a minute" in announce(plan("EURUSD"))


def test_without_a_rate_limit_there_is_nothing_to_wait_for() -> None:
    assert "under a minute of waiting at no rate limit" in announce(plan("EURUSD", rate=None))


def test_a_backfill_without_work_says_so() -> None:
    assert announce(plan()).startswith("Nothing to fetch")


def test_the_summary_counts_the_bars_the_requests_and_the_time() -> None:
    text = summarize(summary())
    assert "86,400 new, 1 changed, 1,000 unchanged, 2 rejected; 1,234 requests; 12.3 s." in text
    assert "\n" not in text


def test_the_summary_names_every_symbol_that_failed_and_what_to_do() -> None:
    lines = summarize(summary(EURUSD="time-out", BTCUSD=REASON)).splitlines()
    assert lines[1:3] == [f"FAILED BTCUSD: {REASON}", "FAILED EURUSD: time-out"]
    assert "Run the same command again" in lines[3]


def test_in_a_log_each_symbol_has_one_line_when_it_is_done() -> None:
    out = io.StringIO()
    with watcher(out) as display:
        assert isinstance(display, Lines)
        display.waiting()
        display.planned(plan("EURUSD", "BTCUSD"))
        display.stored(piece("EURUSD", 0), Stored(new=28_000))
        display.stored(piece("BTCUSD", 0), Stored(new=1))
        display.stored(piece("EURUSD", 1), Stored(new=2_000, changed=3))
        display.failed(piece("BTCUSD", 1), REASON)
        display.refreshing()
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("Another process")
    assert lines[1].startswith("Backfill of 2 symbols")
    assert lines[2] == "EURUSD: 30,000 new, 3 changed bars (1/2)"
    assert lines[3] == f"BTCUSD [2024-03-01 00:00, 2024-03-21 00:00): {REASON}"
    assert lines[4].startswith("All bars are stored")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_each_symbol_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    assert isinstance(watcher(out), Bars)
    with Bars(Console(file=out, force_terminal=True, color_system=None, width=100)) as display:
        display.waiting()
        display.planned(plan("EURUSD", "BTCUSD"))
        for half in (0, 1):
            display.stored(piece("EURUSD", half), Stored(new=10_000, unchanged=5))
            display.failed(piece("BTCUSD", half), REASON)
        display.refreshing()
    text = re.sub(r"\x1b\[[0-9?]*[A-Za-z]|\r", "\n", out.getvalue())
    assert "Backfill of 2 symbols" in text
    final = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "2/2" in final["EURUSD"]
    assert "20,010 bars" in final["EURUSD"]
    assert "failed" in final["BTCUSD"]


def test_a_terminal_without_work_shows_no_bars() -> None:
    out = Terminal()
    with Bars(Console(file=out, force_terminal=True, color_system=None, width=100)) as display:
        display.planned(plan())
    assert out.getvalue().startswith("Nothing to fetch")
