"""The OpenAPI document is true: no server error and no answer that it does not describe, whatever is sent."""

from __future__ import annotations

import scripted
from hypothesis import HealthCheck, settings
from schemathesis import checks, openapi

from mogu.serve.app import create_app

schema = openapi.from_asgi("/openapi.json", create_app(scripted.Scripted(), scripted.tokenizer(), scripted.settings()))


@schema.parametrize()
@settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent(case) -> None:
    promised = (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
    case.call_and_validate(checks=checks.CHECKS.get_by_names(promised))
