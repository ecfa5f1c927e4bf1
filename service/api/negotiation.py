"""Which form and which coding an answer takes: `format`, `Accept` and `Accept-Encoding`."""

from typing import Literal, get_args

from service.api.problems import BadQuery, NotAcceptable

Format = Literal["json", "columns", "csv", "arrow", "parquet"]
Coding = Literal["identity", "gzip", "zstd"]
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: dict[Format, str] = {
    "json": "application/json",
    "columns": "application/vnd.candlewick.columns+json",
    "csv": "text/csv",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}


def chosen_format(named: str | None, accept: str) -> Format:
    """The form that `format` names, or else the one that `Accept` likes best; json where it takes anything.

    Raises BadQuery for an unknown name, NotAcceptable where the header takes none.
    """
    if named is not None:
        for form in FORMATS:
            if form == named.lower():
                return form
        raise BadQuery(f"unknown format {named[:32]!r}", FORMATS)
    if not accept or accept == "*/*":
        return "json"
    liked = {form: _quality(accept, MEDIA_TYPES[form]) for form in FORMATS}
    best = max(FORMATS, key=lambda form: liked[form])
    if not liked[best]:
        types = [MEDIA_TYPES[form] for form in FORMATS]
        raise NotAcceptable("there is no such form of candles: give another Accept, or format=", types)
    return best


def chosen_coding(accept_encoding: str) -> Coding:
    """The coding that the header likes better, zstd if both the same; identity where it names neither."""
    if not accept_encoding:
        return "identity"
    liked = _weights(accept_encoding)
    rest = liked.get("*", 0.0)
    zstd, gzip = liked.get("zstd", 0.0), liked.get("gzip", liked.get("x-gzip", rest))
    if not zstd and not gzip:
        return "identity"
    return "zstd" if zstd >= gzip else "gzip"


def _quality(accept: str, media_type: str) -> float:
    """How much the header likes a type, by its most specific range that holds it."""
    liked = _weights(accept)
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((liked[one] for one in ranges if one in liked), 0.0)


def _weights(header: str) -> dict[str, float]:
    """What the header lists, in lower case, each with its weight from 0 to 1; what cannot be read weighs nothing."""
    found = {}
    for part in header[:4096].split(","):
        name, *options = (word.strip().lower() for word in part.split(";"))
        weight = next((option[2:] for option in options if option.startswith("q=")), "1")
        try:
            found[name] = max(0.0, min(float(weight), 1.0))  # in this order nan is 0
        except ValueError:
            found[name] = 0.0
    return found
