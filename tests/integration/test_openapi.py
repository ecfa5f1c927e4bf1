"""Every call of the document, with whatever the document allows and does not: no 500, no undocumented answer."""

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from litestar.testing import TestClient
from schemathesis import Case
from schemathesis.checks import not_a_server_error

from service.api import sync
from service.api.app import create_app
from service.db.connect import Database, engine_named
from service.settings import load
from tests.integration.marketdata import filled
from tests.integration.test_api import app_of

DOCUMENT = create_app(Database("", engine_named("plain"), ""), load({}, env_file=None)).openapi_schema.to_schema()
CALLS = schemathesis.openapi.from_dict(DOCUMENT)
OF_ONE_SYMBOL = schemathesis.openapi.from_dict(DOCUMENT).include(path_regex=r"\{symbol\}")
OF_ONE_SYMBOL.config.parameters["path.symbol"] = "EURUSD"
for calls in (CALLS, OF_ONE_SYMBOL):
    # An instant is described in words, since no schema says it, and so is a name that is taken: much is refused.
    calls.config.checks.update(excluded_check_names=["positive_data_acceptance"])
UNHEALTHY_IS_503 = "/api/sync/health"
here = hypothesis.settings(max_examples=60, derandomize=True, database=None, deadline=None)


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def client(request: pytest.FixtureRequest) -> Iterator[TestClient[Any]]:
    """The API over a filled database, which the calls change; nobody waits long for a worker that there is not."""
    with (
        pytest.MonkeyPatch.context() as patch,
        filled(request.getfixturevalue(f"{request.param}_server")) as db,
        TestClient(app_of(db), raise_server_exceptions=False) as one,
    ):
        patch.setattr(sync, "LONGEST_WAIT", 0)
        yield one


def check(case: Case[Any], client: TestClient[Any]) -> None:
    """Status, form, content type and `Allow` of the answer; 500 is documented nowhere."""
    sent = case.as_transport_kwargs(base_url=str(client.base_url))
    answer = client.request(
        sent["method"],
        sent["url"],
        params=sent["params"],
        headers=sent["headers"],
        json=sent.get("json"),
        content=sent.get("data"),
    )
    unhealthy = case.path == UNHEALTHY_IS_503 and answer.status_code == 503
    case.validate_response(answer, excluded_checks=[not_a_server_error] if unhealthy else [])


@OF_ONE_SYMBOL.parametrize()
@here
def test_every_answer_about_a_symbol_that_there_is_is_documented(case: Case[Any], client: TestClient[Any]) -> None:
    """With bars, and all that an answer says of them; another one is removed."""
    if case.method == "DELETE":
        case.path_parameters["symbol"] = "XAUUSD"
    check(case, client)


@CALLS.parametrize()
@here
def test_every_answer_is_documented(case: Case[Any], client: TestClient[Any]) -> None:
    """Whatever the path, the query and the body."""
    check(case, client)
