"""What a request for candles asks for: read from its query and its headers, refused where it cannot be answered."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import get_args

import msgspec

from service.aggregate import Fill
from service.api import parameters
from service.api.negotiation import Format, chosen_format
from service.api.problems import BadQuery
from service.frames import PAGE, Ask, Order
from service.spans import Span

DEFAULT_LIMIT = 500
MOST = 10_000_000
"""Candles in one answer."""
MOST_SYMBOLS = 1000
MOST_IN_PAGES = 200_000
"""Candles that the pages of several symbols may amount to."""
TABLES: frozenset[Format] = frozenset({"csv", "arrow", "parquet"})


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request for candles, checked."""

    symbols: tuple[str, ...]
    """In our spelling, each once; whether there are such is not known yet."""
    alone: bool
    """Whether it names one symbol in its path: the answer is that symbol's, not a list."""
    span: Span
    start: datetime | None
    end: datetime | None
    limit: int | None
    """None: the whole range."""
    order: Order
    fill: Fill
    form: Format
    form_given: bool
    """Whether `format` names it, so that the links to further pages do too."""
    require_complete: bool

    @property
    def streamed(self) -> bool:
        """Whether there may be more than fits a page."""
        return self.limit is None or self.limit > PAGE

    def of(self, symbol: str) -> Ask:
        """What is asked of one of its symbols."""
        return Ask(
            symbol=symbol,
            span=self.span,
            start=self.start,
            end=self.end,
            limit=self.limit,
            order=self.order,
            fill=self.fill,
        )


def read(symbols: Sequence[str], given: Mapping[str, str], accept: str, now: datetime, *, alone: bool) -> Asked:
    """Check the parameters of a request. symbols: in our spelling; given: the parameters that it has, by name.

    Raises BadQuery, and NotAcceptable where `Accept` takes none of the forms.
    """
    form = chosen_format(given.get("format"), accept)
    span = parameters.span(given.get("timeframe"), given.get("tz"))
    start, end = (parameters.instant(name, given.get(name), span.zone) for name in ("from", "to"))
    if start is not None and start >= (end or now):
        raise BadQuery(f"from ({start.isoformat()}) must lie before to ({(end or now).isoformat()})")
    order: Order = parameters.choice("order", given.get("order"), get_args(Order))
    limit = _limit(given.get("limit"), form, start)
    asked = Asked(
        symbols=tuple(symbols),
        alone=alone,
        span=span,
        start=start,
        end=end,
        limit=limit,
        order=order,
        fill=parameters.choice("fill", given.get("fill"), get_args(Fill)),
        form=form,
        form_given=given.get("format") is not None,
        require_complete=parameters.flag("require_complete", given.get("require_complete")) or False,
    )
    _refuse_too_much(asked)
    return asked


def _limit(text: str | None, form: Format, start: datetime | None) -> int | None:
    if text is None and form in TABLES and start is not None:
        return None
    return parameters.number("limit", text, default=DEFAULT_LIMIT, least=1, most=MOST)


def _refuse_too_much(asked: Asked) -> None:
    if asked.streamed and asked.start is None:
        raise BadQuery(f"limit={asked.limit} needs `from`: the latest candles are at most {PAGE}")
    if asked.streamed and asked.order == "desc":
        raise BadQuery(f"order=desc needs a limit of at most {PAGE}")
    if asked.streamed and asked.form == "columns":
        raise BadQuery(f"format=columns takes a limit of at most {PAGE}", ["arrow", "json", "csv", "parquet"])
    if asked.alone or asked.limit is None:
        return
    if asked.streamed or len(asked.symbols) * asked.limit > MOST_IN_PAGES:
        raise BadQuery(
            f"{len(asked.symbols)} symbols x limit={asked.limit} is more than {MOST_IN_PAGES} candles: give a lower "
            "limit, fewer symbols, or `from` without a limit as csv, arrow or parquet"
        )
    if asked.form in TABLES and asked.start is not None:
        raise BadQuery(f"format={asked.form} of several symbols takes either `from` or `limit`: a table has no pages")
