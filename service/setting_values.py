"""What the text of one setting may be: each function reads one kind and raises ValueError for any other text."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

LOOPBACK = re.compile(r"localhost|.+\.localhost|127(\.\d{1,3}){3}|::1")
UNITS = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
    "month": timedelta(days=30),
    "year": timedelta(days=365),
}
LONGEST = timedelta(days=36500)
"""Beyond it, instants before the year 1 come into reach; `off` is for ever."""


class Secret:
    """A text that no repr, log line or error shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "<secret>"


def whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number, both bounds included."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)

    return read


def one_of(*choices: str) -> Callable[[str], str]:
    """One of these words, in upper or lower case."""

    def read(text: str) -> str:
        for choice in choices:
            if text.lower() == choice.lower():
                return choice
        raise ValueError(text)

    return read


def word(text: str) -> str:
    """Visible ASCII characters only: what an HTTP header, a host or a URL can hold."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError(text)
    return text


def switch(text: str) -> bool:
    """True or false in the usual spellings."""
    states = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)
    if text.lower() not in states:
        raise ValueError(text)
    return states[text.lower()]


def rate(text: str) -> int | None:
    """A whole number from 1; None for `unlimited`."""
    return None if text.lower() == "unlimited" else whole(1, 10**6)(text)


def interval(text: str) -> timedelta:
    """A count of minutes, hours, days, weeks, months (30 days) or years (365 days), at most a hundred years."""
    match = re.fullmatch(r"([0-9]{1,6})\s*([a-z]+?)s?", text.lower())
    if match is None or match[2] not in UNITS:
        raise ValueError(text)
    length = int(match[1]) * UNITS[match[2]]
    if not timedelta() < length <= LONGEST:
        raise ValueError(text)
    return length


def retention(text: str) -> timedelta | None:
    """An interval of whole days; None for `off`."""
    if text.lower() == "off":
        return None
    length = interval(text)
    if length % UNITS["day"]:
        raise ValueError(text)
    return length


def base_url(text: str) -> str:
    """An https URL, or http to this machine, without login, query and final slash."""
    parts = urlsplit(word(text))
    host = parts.hostname or ""
    refused = not host or "@" in parts.netloc or "?" in text or "#" in text or parts.port == 0
    secure = parts.scheme == "https" or (parts.scheme == "http" and LOOPBACK.fullmatch(host))
    if refused or not secure:
        raise ValueError(text)
    return text.rstrip("/")


def origins(text: str) -> tuple[str, ...]:
    """Where web pages come from: `*`, for all, or one or more of http(s)://host or host:port, commas between them."""
    if text == "*":
        return (text,)
    found = tuple(part.strip().lower() for part in text.split(","))
    for one in found:
        parts = urlsplit(word(one))
        there = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        if not there or one != f"{parts.scheme}://{parts.netloc}" or re.search(r"[@*]", one):
            raise ValueError(text)
    return found


def database_url(text: str) -> str:
    """A URL that libpq takes; SQLAlchemy's spelling of the scheme (postgresql+psycopg) is taken too."""
    url, replaced = re.subn(r"^postgres(ql)?(\+\w+)?://", "postgresql://", word(text))
    if not replaced:
        raise ValueError(text)
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ValueError(text) from None  # the driver's message quotes parts of the URL, perhaps the password
    return url


def folder(text: str) -> Path:
    """An absolute path; `~` is the home."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as exc:
        raise ValueError(text) from exc
