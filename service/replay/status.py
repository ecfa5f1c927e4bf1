"""The provider's "is the market open", computed from the same hours that the replayed bars keep."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from service.provider_calls.markets import NEW_YORK
from service.replay.hours import QUOTES, STOCK, US_INDEX, is_open

_US_GROUPS = ("s_and_p", "nasdaq", "dow_jones", "msci", "ftse_russell", "mstar", "mstarc", "cccy", "cgi")
_NOON = 12
_GROUPS = (*_US_GROUPS, "societe_generale")


def market_status(now: datetime) -> dict[str, Any]:
    """The body of /v1/marketstatus/now at an aware instant; serverTime is RFC 3339 in New York time."""
    regular, extended = is_open(US_INDEX, now), is_open(STOCK, now)
    stocks = "open" if regular else "extended-hours" if extended else "closed"
    local = now.astimezone(ZoneInfo(NEW_YORK))
    return {
        "afterHours": extended and not regular and local.hour >= _NOON,
        "currencies": {"crypto": "open", "fx": _word(is_open(QUOTES, now))},
        "earlyHours": extended and not regular and local.hour < _NOON,
        "exchanges": {"nasdaq": stocks, "nyse": stocks, "otc": _word(regular)},
        "indicesGroups": dict.fromkeys(_GROUPS, _word(regular)),
        "market": stocks,
        "serverTime": local.isoformat(timespec="seconds"),
    }


def _word(is_it: bool) -> str:  # noqa: FBT001
    return "open" if is_it else "closed"
