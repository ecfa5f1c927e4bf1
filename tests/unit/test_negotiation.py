"""Which form and which coding an answer takes."""

import pytest

from service.api.negotiation import FORMATS, chosen_coding, chosen_format
from service.api.problems import BadQuery, NotAcceptable


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/*", "json"),
        ("text/*", "csv"),
        ("TEXT/CSV", "csv"),
        ("application/json;q=0.1, text/csv;q=0.2", "csv"),
        ("application/json;q=0, */*", "columns"),
        ("application/vnd.apache.arrow.stream;q=0.9,*/*;q=0.1", "arrow"),
        ("text/csv;q=nonsense, application/vnd.apache.parquet;q=0.1", "parquet"),
        ("text/csv;q=7", "csv"),
    ],
)
def test_accept_chooses_what_it_likes_best(accept: str, form: str) -> None:
    assert chosen_format(None, accept) == form


@pytest.mark.parametrize("accept", ["image/png", "text/html", "*/*;q=0", ";;;,,,", "x" * 10_000])
def test_an_accept_that_takes_nothing_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        chosen_format(None, accept)


def test_a_name_goes_before_accept() -> None:
    assert [chosen_format(name.upper(), "image/png") for name in FORMATS] == list(FORMATS)
    with pytest.raises(BadQuery, match="xml"):
        chosen_format("xml", "*/*")


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", "identity"),
        ("identity", "identity"),
        ("br, deflate", "identity"),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1, zstd;q=0.5", "gzip"),
        ("gzip;q=0, zstd;q=0", "identity"),
        ("*", "gzip"),
        ("*;q=0", "identity"),
        ("gzip;q=0, *", "identity"),
    ],
)
def test_accept_encoding_chooses_the_coding(header: str, coding: str) -> None:
    assert chosen_coding(header) == coding
