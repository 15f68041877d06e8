"""Requests drawn from the server's own OpenAPI description, right and wrong ones: none is answered with a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

EXAMPLES = 25  # of each operation; raise it to look for more


@pytest.fixture(scope="module")
def operations(served):
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    return [operation.ok() for operation in schema.get_all_operations()]


@pytest.mark.parametrize("mode", GenerationMode)
def test_no_request_makes_it_fail(operations, mode):
    statuses: dict[str, set[int]] = {operation.path: set() for operation in operations}
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.method == "get":  # which nothing can be wrong with
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def ask(case):
            response = case.call()
            statuses[case.path].add(response.status_code)
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                error = response.json()["error"]
                assert error.keys() == {"message", "type", "param", "code"} and error["message"]

        ask()
    assert statuses["/v1/chat/completions"] and statuses["/v1/completions"]
    if mode is GenerationMode.POSITIVE:
        assert 200 in statuses["/v1/completions"] and statuses["/v1/models"] == {200}
