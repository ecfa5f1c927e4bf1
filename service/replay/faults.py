"""Which request meets which fault, by a script or by chance, and what the answer becomes.

A fault is named by its kind, or by `kind:variant` where a kind has several faces (`server_error:502`).
"""

import random
from collections.abc import Mapping, Sequence

from service.provider_calls.refusals import TOO_MANY, Answer, Refusal
from service.replay.spoiling import SPOILERS, Asked, spoil

_RATE_LIMITED: Mapping[str, Refusal | None] = {
    "plain": Refusal(429, TOO_MANY),
    "0": Refusal(429, TOO_MANY, headers={b"retry-after": b"0"}),
    "1": Refusal(429, TOO_MANY, headers={b"retry-after": b"1"}),
    "empty": None,
}
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
_SERVER_ERRORS: Mapping[str, Answer | Refusal] = {
    "500": Refusal(500, "Internal server error"),
    "502": Answer(status=502, body=_HTML, content_type=b"text/html"),
    "503": Answer(status=503, body=b"Service Unavailable", content_type=b"text/plain"),
}
_VARIANTS = {"rate_limited": tuple(_RATE_LIMITED), "server_error": tuple(_SERVER_ERRORS)}
CUT_SHORT = ("timeout", "broken_connection")
"""The kinds that end the connection instead of the answer."""
_BROKEN = ("broken_json", "cut_json")
FAULT_KINDS = (*_VARIANTS, *CUT_SHORT, *_BROKEN, *SPOILERS)
HARMLESS = ("identical_duplicate", "wrong_count", "vw_outside")
"""The kinds that a correct client puts up with."""
RANDOM_KINDS = tuple(kind for kind in FAULT_KINDS if kind != "vw_outside")
"""What chance picks unless told otherwise: all that leave the bars of a careful client unchanged."""


class FaultPlan:
    """Decides for each request; `script` may be changed at any time and goes before chance."""

    def __init__(self, *, rate: float, seed: int, kinds: Sequence[str], script: Sequence[str | None]) -> None:
        """rate: share of requests, 0 to 1; kinds: what chance may pick."""
        self.script = list(script)
        self._rate = rate
        self._kinds = tuple(kinds)
        self._chance = random.Random(seed)  # noqa: S311  # repeatable, not secret

    def next(self) -> str | None:
        """The fault of the next request, variant included; None: answer well. ValueError for an unknown kind."""
        if self.script:
            fault = self.script.pop(0)
        else:
            fault = self._chance.choice(self._kinds) if self._chance.random() < self._rate else None
        if fault is None:
            return None
        check(fault)
        kind, _, variant = fault.partition(":")
        return f"{kind}:{self._chance.choice(_VARIANTS[kind])}" if kind in _VARIANTS and not variant else fault

    def refusal(self, fault: str) -> Answer | None:
        """The answer of a fault that keeps the request from being handled at all; None for any other fault."""
        kind, _, variant = fault.partition(":")
        if kind == "rate_limited":
            refused = _RATE_LIMITED[variant]
            return Answer(status=429, body=b"") if refused is None else refused.answer()
        if kind == "server_error":
            error = _SERVER_ERRORS[variant]
            return error.answer() if isinstance(error, Refusal) else error
        return None

    def spoiled(self, answer: Answer, fault: str, asked: Asked) -> Answer:
        """A good answer with the fault in it."""
        body = answer.body
        if fault in SPOILERS:
            body = spoil(body, fault, asked, self._chance)
        elif fault in _BROKEN:
            place = self._chance.randrange(1, len(body))
            body = body[:place] + (b"" if fault == "cut_json" else b"\x00<garbage>\x00" + body[place:])
        return Answer(status=answer.status, body=body, content_type=answer.content_type, headers=answer.headers)


def check(fault: str) -> None:
    """ValueError, listing what there is, if there is no such kind or variant."""
    kind, colon, variant = fault.partition(":")
    if kind not in FAULT_KINDS:
        raise ValueError(f"unknown fault {kind!r}: there are {', '.join(FAULT_KINDS)}")
    if colon and variant not in _VARIANTS.get(kind, ()):
        raise ValueError(f"unknown variant in {fault!r}: there are {', '.join(_VARIANTS.get(kind, ())) or 'none'}")
