"""Cursors: what a next page is asked for by, opaque to clients, and refused where somebody has changed it."""

import base64
import binascii
import zlib
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

from service.provider_calls.refusals import Refusal

_SUM = "sum"


def sealed(values: Mapping[str, object]) -> str:
    """The cursor that stands for these parameters."""
    text = urlencode(values)
    return base64.urlsafe_b64encode(urlencode({**values, _SUM: _sum(text)}).encode()).decode().rstrip("=")


def opened(cursor: str) -> dict[str, str]:
    """The parameters that a cursor stands for; Refusal (400) unless it is one of ours, unchanged."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        text, _, told = raw.decode().rpartition(f"&{_SUM}=")
        values = dict(parse_qsl(text, strict_parsing=True, keep_blank_values=True))
    except (binascii.Error, ValueError):
        raise _not_ours() from None
    if told != _sum(text):
        raise _not_ours()
    return values


def _sum(text: str) -> str:
    """Against mishaps, not against forgery: there is nothing in a cursor that a client may not ask for."""
    return f"{zlib.crc32(text.encode()):08x}"


def _not_ours() -> Refusal:
    return Refusal(400, "The parameter 'cursor' is not one of ours")
