"""Every error that Candlewick raises on purpose; each message tells its reader what to do next.

CandlewickError
├── SettingsError        a setting is wrong or missing; names the variable
├── UsageError           the command line or the request asks for what cannot be
│   └── UnknownSymbol    no such symbol; carries the nearest names
├── DatabaseError        the database is not in a state to be used
│   └── SourceMismatch   bars of another source are in this database
└── ProviderError        the provider gave no usable answer; carries the request, never the key
    ├── NotAuthorized    401: the key is missing or unknown
    ├── NotEntitled      403: the plan does not cover what was asked for
    ├── BadRequest       400 and other refusals that a repetition cannot mend
    ├── Unavailable      429, 5xx, time-outs and broken connections, after all retries
    └── BadPayload       a body that cannot be trusted: nothing of it may be stored
"""

from collections.abc import Sequence


class CandlewickError(Exception):
    """Base of all errors that are told to the user as one line."""


class SettingsError(CandlewickError):
    """A setting is wrong or missing.

    variable: the name of the environment variable to change.
    """

    def __init__(self, variable: str, message: str) -> None:
        super().__init__(f"{variable}: {message}")
        self.variable = variable


class UsageError(CandlewickError):
    """The command line or the request asks for something that cannot be."""


class UnknownSymbol(UsageError):
    """No instrument has this symbol; `nearest` holds the names most like it, best first."""

    def __init__(self, symbol: str, nearest: Sequence[str] = ()) -> None:
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        super().__init__(f"unknown symbol {symbol!r}{hint}")
        self.symbol = symbol
        self.nearest = tuple(nearest)


class DatabaseError(CandlewickError):
    """The database cannot be used as it is."""


class SourceMismatch(DatabaseError):
    """The database holds bars of another source; sources are never mixed."""


class ProviderError(CandlewickError):
    """The provider gave no usable answer.

    request: method and URL of the request, without any key.
    request_id: the provider's own id of it, where it sent one.
    """

    def __init__(self, message: str, *, request: str = "", request_id: str | None = None) -> None:
        where = f" [{request}]" if request else ""
        ident = f" (request_id {request_id})" if request_id else ""
        super().__init__(f"{message}{where}{ident}")
        self.request = request
        self.request_id = request_id


class NotAuthorized(ProviderError):
    """HTTP 401: the key is missing or unknown."""


class NotEntitled(ProviderError):
    """HTTP 403: the plan does not cover this ticker, timeframe or time; the message is the provider's own."""


class BadRequest(ProviderError):
    """HTTP 400, or another refusal that a repetition cannot mend."""


class Unavailable(ProviderError):
    """The provider could not be reached or stayed overloaded through all retries."""


class BadPayload(ProviderError):
    """A body that cannot be trusted (broken, of wrong types, contradictory): nothing of it may be stored."""


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a group of tasks, without the tasks that fell with it."""
    inner = group.exceptions[0]
    return first_of(inner) if isinstance(inner, BaseExceptionGroup) else inner
