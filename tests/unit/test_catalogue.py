"""What follows from a ticker: the asset type, and the usual symbol."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.catalogue import SYMBOL_FORM, TICKER_FORMS, TICKER_PATTERN, BadInstrument, classify
from service.instruments import SEED


@pytest.mark.parametrize(
    ("ticker", "asset_type", "symbol"),
    [
        ("C:EURUSD", "forex", "EURUSD"),
        ("C:XAUUSD", "commodity", "XAUUSD"),
        ("C:XPTEUR", "commodity", "XPTEUR"),
        ("C:USDXAU", "forex", "USDXAU"),
        ("X:BTCUSD", "crypto", "BTCUSD"),
        ("X:1INCHUSD", "crypto", "1INCHUSD"),
        ("I:SPX", "index", "SPX"),
        ("AAPL", "stock", "AAPL"),
        ("BRK.A", "stock", "BRK.A"),
        ("BACpB", "stock", "BACPB"),
        ("A", "stock", "A"),
    ],
)
def test_asset_type_and_symbol_follow_from_the_ticker(ticker: str, asset_type: str, symbol: str) -> None:
    assert classify(ticker) == (asset_type, symbol)
    assert re.search(TICKER_PATTERN, ticker)


def test_the_instruments_of_every_installation_are_classified_as_they_are_seeded() -> None:
    assert [classify(one.ticker)[0] for one in SEED] == [one.asset_type for one in SEED]


@pytest.mark.parametrize(
    "ticker",
    [
        "",
        " ",
        "aapl",
        "c:EURUSD",
        "C:EURUS",
        "C:EURUSDX",
        "C:eurusd",
        "I:",
        "X:BT",
        "O:SPY251219C00650000",
        "AAPL\n",
        "Ä",
    ],
)
def test_what_is_no_ticker_is_refused_with_the_forms_of_one(ticker: str) -> None:
    with pytest.raises(BadInstrument) as caught:
        classify(ticker)
    assert caught.value.allowed == TICKER_FORMS
    assert ("options are not kept" in str(caught.value)) == ticker.startswith("O:")


@given(st.text(max_size=30) | st.from_regex(TICKER_PATTERN))
def test_a_usual_symbol_can_always_be_a_symbol(ticker: str) -> None:
    """Whatever the ticker."""
    try:
        _, symbol = classify(ticker)
    except BadInstrument:
        return
    assert re.fullmatch(SYMBOL_FORM, symbol)
