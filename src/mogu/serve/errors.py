"""What goes wrong with a request, in the shape that OpenAI's clients know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mogu.errors import ConfigError, GenerationError, MoguError, QueueFullError

INVALID = "invalid_request_error"


class ApiError(MoguError):
    """A request that is not answered: an HTTP status, and what the client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None,
        param: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(_printable(message))
        self.status, self.code, self.kind = status, code, kind
        self.param = None if param is None else _printable(param)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object that the client gets."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """A field has a value that it cannot have."""
    return ApiError(400, message, code=code, param=param)


def unsupported(param: str, why: str = "") -> ApiError:
    """A field that OpenAI's API has and this server has not."""
    return invalid(param, f"'{param}' is not supported{why and f': {why}'}", "unsupported_parameter")


def not_allowed(param: str, floor: str) -> ApiError:
    """A client asks for less protection than is served."""
    message = (
        f"'{param}' would weaken the protection of this server ({floor}); it runs without --allow-client-overrides"
    )
    return ApiError(403, message, code="override_not_allowed", param=param)


def unknown_model(model: str) -> ApiError:
    """No such model is served."""
    return ApiError(404, f"The model '{model[:200]}' does not exist", code="model_not_found", param="model")


def queue_full(seconds: int) -> ApiError:
    """As many answers wait as may."""
    return ApiError(
        429,
        f"The server is busy: its queue is full. Try again in {seconds} s.",
        code="queue_full",
        kind="rate_limit_error",
        headers={"Retry-After": str(seconds)},
    )


def timed_out(seconds: float) -> ApiError:
    """The answer took too long."""
    return ApiError(504, f"No complete answer within {seconds:g} s", code="timeout", kind="timeout_error")


class TailError(ApiError):
    """The engine that continues answers did not."""

    def __init__(self, why: str, *, away: bool = False) -> None:
        super().__init__(502, f"The engine that continues answers {why}", code="tail_failed", kind="server_error")
        self.away = away
        """Whether it was not reached at all."""


def shutting_down() -> ApiError:
    """The server takes no more requests."""
    message = "The server is shutting down and takes no more requests"
    return ApiError(503, message, code="shutting_down", kind="server_error", headers={"Retry-After": "5"})


def internal() -> ApiError:
    """Our fault; details are in the log only."""
    return ApiError(500, "The server had an error while answering", code="internal_error", kind="server_error")


def from_engine(error: Exception, *, retry_after: int, closing: bool = False) -> ApiError:
    """What a client is told of an exception of the engine."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return queue_full(retry_after)
    if closing:
        return shutting_down()
    if isinstance(error, (GenerationError, ConfigError)):
        return invalid(None, str(error))
    return internal()


def from_validation(errors: Sequence[Mapping[str, Any]], fields: frozenset[str]) -> ApiError:
    """The first of pydantic's complaints; ``fields`` are all field names there are.

    The path that pydantic gives holds names of types, too, where a field may have several.
    """
    present = [error for error in errors if error["type"] != "missing"] or list(errors)
    same = [error for error in present if error["loc"][:2] == present[0]["loc"][:2]]
    # A field of several types has an error for each: the type that was meant complains of something else.
    first = next((error for error in same if not error["type"].endswith("_type")), present[0])
    kind, found = first["type"], first.get("ctx", {})
    path = [part for part in first["loc"] if part != "body"]
    kept = [
        part
        for place, part in enumerate(path)
        if isinstance(part, int) or part in fields or (kind == "extra_forbidden" and place == len(path) - 1)
    ]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in kept).removeprefix(".")
    if kind in ("json_invalid", "model_attributes_type") and not param:
        return invalid(None, "The body is not a JSON object in a request of type application/json", "invalid_json")
    if kind == "missing":
        return invalid(param, f"Missing required parameter: '{param}'", "missing_required_parameter")
    if kind == "extra_forbidden":
        return invalid(param, f"Unknown or unsupported parameter: '{param}'", "unsupported_parameter")
    if kind == "too_long" and found.get("max_length") == 0:
        return unsupported(param, "it must be empty")
    if kind == "literal_error":
        message = f"Unsupported value for '{param}': {str(first.get('input'))[:80]!r}; known: {found['expected']}"
        return invalid(param, message, "unsupported_value")
    return invalid(param or None, f"Invalid value for '{param}': {first['msg']}", _code(kind))


def _code(kind: str) -> str:
    return "invalid_type" if kind.endswith("_type") or kind.startswith(("union", "string_unicode")) else "invalid_value"


def _printable(text: str) -> str:
    """``text`` without half characters, which JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", "backslashreplace").decode()
