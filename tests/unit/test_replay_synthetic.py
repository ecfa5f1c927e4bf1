from collections.abc import Iterator
from datetime import UTC, date, datetime

import numpy as np
import pytest

from service.bars import MINUTE_MS, Bars, from_ms
from service.instruments import SEED, Instrument
from service.replay.columns import between
from service.replay.profiles import profile_of
from service.replay.synthetic import FIRST_DAY, SyntheticMarket, forming
from service.zones import DAY_MS, EPOCH_DATE

_TUESDAY = (date(2024, 3, 5) - EPOCH_DATE).days


def _rows(bars: Bars) -> Iterator[tuple[float, ...]]:
    return zip(*(getattr(bars, name).tolist() for name in Bars.__struct_fields__), strict=True)


def _at(bars: Bars, at: datetime) -> tuple[float, ...]:
    start = int(at.timestamp() * 1000)
    return next(_rows(between(bars, start, start + MINUTE_MS)))


def test_bars_are_the_same_on_any_machine() -> None:
    """Three bars, written down once: whoever computes them must get these."""
    market = SyntheticMarket(0)
    at = datetime(2024, 3, 5, 15, 0, tzinfo=UTC)
    assert {ticker: _at(market.day(ticker, _TUESDAY), at)[1:6] for ticker in ("C:EURUSD", "X:BTCUSD", "AAPL")} == {
        "C:EURUSD": (1.10166, 1.10189, 1.10161, 1.10184, 163.0),
        "X:BTCUSD": (60684.77, 60723.13, 60671.39, 60711.66, 4.592758),
        "AAPL": (248.96, 248.96, 248.89, 248.95, 11343.0),
    }


def test_bars_do_not_depend_on_what_was_asked_before() -> None:
    """A market asked for other days first gives the same day."""
    fresh, used = SyntheticMarket(3), SyntheticMarket(3)
    for day in range(_TUESDAY - 3, _TUESDAY + 3):
        used.day("X:ETHUSD", day)
    assert list(_rows(fresh.day("X:ETHUSD", _TUESDAY))) == list(_rows(used.day("X:ETHUSD", _TUESDAY)))


def test_another_seed_or_ticker_is_another_market() -> None:
    """Seeds and tickers share no bars."""
    day = SyntheticMarket(0).day("C:EURUSD", _TUESDAY)
    assert not np.array_equal(day.open[:100], SyntheticMarket(1).day("C:EURUSD", _TUESDAY).open[:100])
    assert not np.array_equal(day.open[:100], SyntheticMarket(0).day("C:USDCHF", _TUESDAY).open[:100])


@pytest.mark.parametrize("instrument", SEED, ids=lambda instrument: instrument.symbol)
def test_every_seeded_instrument_has_possible_bars(instrument: Instrument) -> None:
    """Prices are positive, rounded to the instrument's decimals, and lie within high and low, as does vwap."""
    bars, profile = SyntheticMarket(0).day(instrument.ticker, _TUESDAY), profile_of(instrument.ticker)
    assert profile is not None
    assert len(bars) > 380
    assert (np.diff(bars.ts) > 0).all()
    assert (bars.ts % MINUTE_MS == 0).all()
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()
    assert (bars.low > 0).all()
    for prices in (bars.open, bars.high, bars.low, bars.close):
        assert [float(f"{price:.{profile.decimals}f}") for price in prices.tolist()] == prices.tolist()
    if profile.volume != "none":
        assert ((bars.low <= bars.vwap) & (bars.vwap <= bars.high)).all()
        assert (bars.volume > 0).all()
        assert (bars.trades > 0).all()


@pytest.mark.parametrize(
    ("symbol", "low", "high"),
    [
        ("EURUSD", 0.95, 1.25),
        ("USDJPY", 120, 190),
        ("XAUUSD", 1500, 3500),
        ("SPX500", 4000, 7000),
        ("BTCUSD", 3e4, 1e5),
    ],
)
def test_levels_are_plausible(symbol: str, low: float, high: float) -> None:
    """Prices stay near those that people know."""
    ticker = next(instrument.ticker for instrument in SEED if instrument.symbol == symbol)
    closes = np.concatenate([SyntheticMarket(0).day(ticker, day).close for day in range(_TUESDAY, _TUESDAY + 900, 45)])
    assert low < closes.min() < closes.max() < high


def test_days_join_without_a_jump() -> None:
    """The first open of a day is about the last close of the day before: no more than a busy minute's move away."""
    market = SyntheticMarket(0)
    for day in range(_TUESDAY, _TUESDAY + 20):
        before, after = market.day("X:BTCUSD", day), market.day("X:BTCUSD", day + 1)
        assert after.open[0] == pytest.approx(before.close[-1], rel=0.005)


def test_a_bar_opens_about_where_the_one_before_closed() -> None:
    """Within a day, neighbouring minutes join to within one tick."""
    bars = SyntheticMarket(0).day("C:EURUSD", _TUESDAY)
    neighbours = np.diff(bars.ts) == MINUTE_MS
    assert (np.abs(bars.open[1:] - bars.close[:-1])[neighbours] < 2.1e-5).all()


def test_some_minutes_are_missing_more_of_them_at_night() -> None:
    """Between 0.5 and 2 percent of the open minutes have no bar, and more of the quiet hours than of the busy ones."""
    market = SyntheticMarket(0)
    night, busy, days = 0, 0, 0
    for day in range(_TUESDAY, _TUESDAY + 300, 7):
        hours = market.day("C:EURUSD", day).ts % DAY_MS // 3_600_000
        night, busy, days = night + int((hours < 6).sum()), busy + int(((hours >= 12) & (hours < 18)).sum()), days + 1
    assert 0.98 < night / (360 * days) < busy / (360 * days) < 0.995


def test_what_a_market_has_of_volume() -> None:
    """Quotes count whole ticks, coins trade in fractions, indices have no volume at all."""
    market = SyntheticMarket(0)
    quotes, coins, index = (market.day(ticker, _TUESDAY) for ticker in ("C:EURUSD", "X:BTCUSD", "I:SPX"))
    assert (quotes.volume == quotes.trades).all()
    assert (coins.volume % 1 != 0).any()
    assert np.isnan(index.volume).all()
    assert np.isnan(index.vwap).all()
    assert (index.trades == -1).all()


def test_unknown_tickers_do_not_exist() -> None:
    """Nothing is invented for what is neither seeded nor a plain stock; spelling is case-sensitive."""
    market = SyntheticMarket(0)
    for ticker in ("X:NOSUCH", "c:eurusd", "EURUSD", "SPX500"):
        assert not market.knows(ticker)
        assert not market.days(ticker, 0, 20_000)
        assert not len(market.day(ticker, _TUESDAY))


def test_any_plain_ticker_is_a_stock() -> None:
    """One to five capitals are a US stock, with its extended hours and whole shares."""
    bars = SyntheticMarket(0).day("TSLA", _TUESDAY)
    assert 930 < len(bars) <= 960
    assert (bars.volume % 1 == 0).all()


def test_history_begins_in_2000() -> None:
    """No synthetic bar is older than 2000-01-01."""
    assert list(SyntheticMarket(0).days("X:BTCUSD", 0, FIRST_DAY + 1)) == [FIRST_DAY, FIRST_DAY + 1]
    assert from_ms(FIRST_DAY * DAY_MS) == datetime(2000, 1, 1, tzinfo=UTC)


def test_a_forming_bar_grows_into_the_finished_one() -> None:
    """While its minute runs a bar keeps its open, only widens, and ends as the finished bar."""
    bars = SyntheticMarket(0).day("X:BTCUSD", _TUESDAY)
    early, late, done = (forming(bars, fraction, 2) for fraction in (0.1, 0.7, 1.0))
    assert np.array_equal(early.open, bars.open)
    assert (early.volume <= late.volume).all()
    assert (early.trades <= late.trades).all()
    for seen in (early, late):
        assert (seen.high >= np.maximum(seen.open, seen.close)).all()
        assert (seen.low <= np.minimum(seen.open, seen.close)).all()
        assert (seen.high <= bars.high + 0.011).all()
        assert (seen.low >= bars.low - 0.011).all()
    assert list(_rows(done)) == list(_rows(bars))
