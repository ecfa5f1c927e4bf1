"""Content codings: gzip by the standard library, zstd by Arrow's; bytes in, bytes out as they come."""

import zlib
from typing import Protocol

import pyarrow as pa

from service.api.negotiation import Coding
from service.tables import Sink

GZIP_LEVEL = 1
"""The fastest: an answer is compressed once and read once, and the higher levels save little of numbers."""
_AS_GZIP = 16 + zlib.MAX_WBITS


class Compressor(Protocol):
    """One answer being compressed."""

    def compress(self, data: bytes) -> bytes:
        """What comes out for it so far; maybe nothing yet."""

    def finish(self) -> bytes:
        """The rest."""


def compressor_of(coding: Coding) -> Compressor | None:
    """A new one; None for identity."""
    match coding:
        case "gzip":
            return Gzip()
        case "zstd":
            return Zstd()
        case "identity":
            return None


class Gzip:
    """gzip (RFC 1952)."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _AS_GZIP)

    def compress(self, data: bytes) -> bytes:
        """What comes out so far."""
        return self._stream.compress(data)

    def finish(self) -> bytes:
        """The rest."""
        return self._stream.flush()


class Zstd:
    """zstd (RFC 8878), one frame."""

    def __init__(self) -> None:
        self._sink = Sink()
        self._stream = pa.CompressedOutputStream(pa.PythonFile(self._sink, mode="w"), "zstd")

    def compress(self, data: bytes) -> bytes:
        """What comes out so far."""
        self._stream.write(data)
        return self._sink.take()

    def finish(self) -> bytes:
        """The rest."""
        self._stream.close()
        return self._sink.take()
