"""What the OpenAPI document lets clients send, and what it does not, is answered as it says; nothing breaks.

In one process, without a network; every run sends the same.
"""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from migrator.api import openapi
from migrator.api.routes import DISCOVERY
from tests.api.conftest import Api, Peers

#: Requests to each operation that fit the document, and as many that do not.
EXAMPLES = 4
_SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
SCHEMA = schemathesis.openapi.from_dict(json.loads(json.dumps(openapi.document())))
_FOUND = [found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)]
OPERATIONS = {f"{found.method.upper()} {found.path}": found for found in _FOUND}
#: They take nothing that could be wrong.
OPEN = {f"GET {path}" for path in DISCOVERY}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in OPEN])
def test_the_document_is_kept_to(api: Api, peers: Peers, operation: str, mode: GenerationMode) -> None:
    try:
        cases = OPERATIONS[operation].as_strategy(generation_mode=mode)
    except Exception as error:
        pytest.fail(f"no requests can be made for {operation}: {error}")
    volume_id = api.make_volume()
    _send(cases, api, volume_id)


def _send(cases: Any, api: Api, volume_id: str) -> None:
    @_SETTINGS
    @hypothesis.given(cases)
    def send(case: Any) -> None:
        if "volume_id" in case.path_parameters:
            case.path_parameters["volume_id"] = volume_id
        case.headers = {**(case.headers or {}), "X-Auth-Token": "admin:demo"}
        response = case.call(app=api.app, base_url="http://api.test")
        assert response.status_code < 500 or response.status_code == 503, response.text
        case.validate_response(response, checks=[status_code_conformance, response_schema_conformance])

    send()
