"""The OpenAPI document is true: no server error and no answer that it does not describe, whatever is sent."""

from __future__ import annotations

from typing import Any

import scripted
from hypothesis import HealthCheck, settings
from schemathesis import checks, openapi

from mogu.serve.app import create_app

_APP = create_app(scripted.Scripted(), scripted.tokenizer(), scripted.settings())


async def _always_on(scope: Any, receive: Any, send: Any) -> None:
    """schemathesis starts and stops the application around every call; an engine that was closed stays so."""
    if scope["type"] != "lifespan":
        return await _APP(scope, receive, send)
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


schema = openapi.from_asgi("/openapi.json", _always_on)


@schema.parametrize()
@settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent(case) -> None:
    promised = (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
    )
    case.call_and_validate(checks=checks.CHECKS.get_by_names(promised))
