"""Requests that schemathesis draws from the server's own description, right and wrong ones: each is answered as described."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette.testclient", reason="serving needs zooproof[serving]")
pytest.importorskip("schemathesis", reason="it needs zooproof[descriptions]")
import schemathesis
from asking import client_of
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NAMES = ["text", "pair", "token", "question", "translation", "image", "generation"]
FEW = settings(
    max_examples=4, database=None, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
)


@pytest.fixture(scope="module")
def client(loaded):
    with client_of(loaded, wait=0.0) as found:
        yield found


def operations(description, name):
    """Those of a model."""
    for one in schemathesis.openapi.from_dict(description).get_all_operations():
        operation = one.ok()
        if name in operation.path.split("/"):
            yield operation


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_from_the_description_is_answered_as_described(client, name, mode):
    statuses = set()
    for operation in operations(client.get("/openapi.json").json(), name):
        if operation.method == "get" and mode.is_negative:  # there is nothing to be wrong
            continue

        @FEW
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case):
            case.headers.pop("Authorization", None)
            words = case.as_transport_kwargs(base_url="http://testserver")
            words.pop("cookies", None)
            words = {key: value for key, value in words.items() if value is not None}
            response = client.request(**{"content" if key == "data" and isinstance(value, bytes | str) else key: value
                                         for key, value in words.items()})  # fmt: skip
            statuses.add(response.status_code)
            case.validate_response(response, checks=CHECKS)

        ask()
    assert mode.is_negative or 200 in statuses, statuses
