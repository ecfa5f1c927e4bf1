from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from massive import RESTClient  # type: ignore[import-untyped]  # the package has no types
from massive.exceptions import BadResponse  # type: ignore[import-untyped]
from massive.rest.models import Agg  # type: ignore[import-untyped]

from service.bars import Bars
from service.replay import ReplayConfig, ReplayServer, running

_SINCE, _UNTIL = datetime(2024, 5, 6, tzinfo=UTC), datetime(2024, 5, 18, tzinfo=UTC)


@pytest.fixture
def replay() -> Iterator[ReplayServer]:
    """A replay whose clock stands at 2024-06-01 and that wants the key `key`."""
    with running(ReplayConfig(now=datetime(2024, 6, 1, tzinfo=UTC), api_key="key")) as server:
        yield server


@pytest.fixture
def client(replay: ReplayServer) -> Iterator[RESTClient]:
    """The provider's own client, pointed at the replay."""
    made = RESTClient("key", base=replay.url, retries=0)
    yield made
    made.client.clear()


def _times(aggs: Iterator[Agg]) -> list[int | None]:
    return [agg.timestamp for agg in aggs]


def _bars(replay: ReplayServer, symbol: str) -> Bars:
    return replay.bars(symbol, _SINCE, _UNTIL)


def test_the_official_client_pages_through_minutes(replay: ReplayServer, client: RESTClient) -> None:
    """list_aggs follows next_url to the end: all bars of twelve days, each once, with all of their values."""
    aggs = list(client.list_aggs("C:EURUSD", 1, "minute", "2024-05-06", "2024-05-17", limit=3000))
    expected = _bars(replay, "EURUSD")
    assert [(a.timestamp, a.open, a.high, a.low, a.close, a.volume, a.vwap, a.transactions) for a in aggs] == list(
        zip(*(getattr(expected, name).tolist() for name in Bars.__struct_fields__), strict=True)
    )
    assert len(replay.requests) == 1 + len(aggs) // 3000
    assert {served.key_in for served in replay.requests} == {"header"}


def test_the_official_client_pages_backwards(replay: ReplayServer, client: RESTClient) -> None:
    """Descending pages end where ascending ones begin."""
    aggs = client.list_aggs("X:BTCUSD", 1, "minute", _SINCE, "2024-05-17", sort="desc", limit=9999)
    assert _times(aggs) == _bars(replay, "BTCUSD").ts[::-1].tolist()


def test_the_official_client_pages_through_coarse_bars(client: RESTClient) -> None:
    """Hourly bars arrive whole and once each, however small the limit of minutes."""
    paged = _times(client.list_aggs("X:BTCUSD", 1, "hour", "2024-05-06", "2024-05-07", limit=500))
    assert paged == [int(_SINCE.timestamp() * 1000) + hour * 3_600_000 for hour in range(48)]


def test_the_official_client_sees_nothing_as_nothing(client: RESTClient) -> None:
    """A closed day yields no bars and no error."""
    assert _times(client.list_aggs("C:EURUSD", 1, "minute", "2024-05-11", "2024-05-11")) == []


def test_the_official_client_reads_the_market_status(client: RESTClient) -> None:
    """The status decodes into the client's own model."""
    status = client.get_market_status()
    assert (status.market, status.currencies.crypto, status.exchanges.nyse) == ("closed", "open", "closed")


def test_the_official_client_is_told_of_an_unknown_key(replay: ReplayServer) -> None:
    """A wrong key raises the client's own error with the provider's words."""
    client = RESTClient("other", base=replay.url, retries=0)
    with pytest.raises(BadResponse, match="Unknown API Key"):
        next(client.list_aggs("C:EURUSD", 1, "minute", "2024-05-06", "2024-05-07"))
    client.client.clear()
