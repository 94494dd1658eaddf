"""The OpenAPI document is true: no server error and no answer that it does not describe, whatever is sent."""

from __future__ import annotations

import hypothesis
import schemathesis
import scripted

from mogu.serve.app import create_app

_APP = create_app(scripted.Scripted(), scripted.small.tokenizer(), scripted.settings())
schema = schemathesis.openapi.from_asgi("/openapi.json", _APP)
schema.config.generation.update(max_examples=12)
_PROMISED = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.negative_data_rejection,
]
