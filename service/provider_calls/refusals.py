"""The provider's refusals, word for word where a recorded one exists, and the shape of every answer."""

import uuid
from collections.abc import Mapping

import msgspec

JSON = b"application/json"

BAD_TIME = "Could not parse the time parameter: '{}'. Use YYYY-MM-DD or Unix MS Timestamps"
NO_SUCH_CALL = "The requested resource was not found."
TO_BEFORE_FROM = "The parameter 'to' cannot be a time that occurs before 'from'"
NO_KEY = "API Key was not provided"
UNKNOWN_KEY = "Unknown API Key"
NOT_ENTITLED = "You are not entitled to this data. Please upgrade your plan at https://massive.com/pricing"
TIMEFRAME = "Your plan doesn't include this data timeframe. Please upgrade your plan at https://polygon.io/pricing"
TOO_MANY = "You've exceeded the maximum requests per minute, please wait or upgrade your subscription to continue."


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP answer before it is sent."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Refusal(Exception):
    """An answer rather than a failure: ends the handling of a request with an error body of the provider's shape."""

    def __init__(self, status: int, text: str, *, headers: Mapping[bytes, bytes] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = tuple((headers or {}).items())

    def answer(self) -> Answer:
        """The text stands in `error`, or in `message` where the provider does so (403, 404)."""
        word, key = {403: ("NOT_AUTHORIZED", "message"), 404: ("NOT_FOUND", "message")}.get(
            self.status, ("ERROR", "error")
        )
        body = msgspec.json.encode({"status": word, "request_id": request_id(), key: self.text})
        return Answer(status=self.status, body=body, headers=self.headers)


def request_id() -> str:
    """A new id, 32 hexadecimal digits as the provider's."""
    return uuid.uuid4().hex
