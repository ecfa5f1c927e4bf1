"""The 45 instruments that every installation starts with."""

from collections import Counter

from service.instruments import SEED


def test_the_seed_is_28_forex_pairs_2_metals_4_indices_and_11_coins() -> None:
    assert Counter(one.asset_type for one in SEED) == {"forex": 28, "commodity": 2, "index": 4, "crypto": 11}


def test_no_symbol_and_no_ticker_stands_for_two_instruments() -> None:
    assert len({one.symbol for one in SEED}) == len({one.ticker for one in SEED}) == len(SEED) == 45


def test_each_pair_of_the_eight_majors_is_there_once_in_the_markets_order() -> None:
    pairs = {one.symbol for one in SEED if one.asset_type == "forex"}
    assert len({frozenset((pair[:3], pair[3:])) for pair in pairs}) == 28
    assert {"EURUSD", "GBPJPY", "AUDNZD", "USDCAD", "CADCHF", "CHFJPY", "NZDUSD"} <= pairs


def test_each_ticker_is_the_providers_spelling_of_its_kind() -> None:
    """C: currencies and metals, I: indices, X: coins."""
    prefixes = {"forex": "C:", "commodity": "C:", "index": "I:", "crypto": "X:"}
    for one in SEED:
        assert one.ticker.startswith(prefixes[one.asset_type])
        assert one.name
        if one.asset_type != "index":
            assert one.ticker[2:] == one.symbol
    tickers = {one.symbol: one.ticker for one in SEED}
    assert (tickers["SPX500"], tickers["NAS100"], tickers["DJI30"], tickers["DAX40"]) == (
        "I:SPX",
        "I:NDX",
        "I:DJI",
        "I:DAX",
    )
