"""The HTTP side of a server, as an ASGI application."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from mogu.errors import MissingExtraError

try:
    from fastapi import APIRouter, FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.middleware.cors import CORSMiddleware
    from prometheus_client import CONTENT_TYPE_LATEST
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse, Response

    from mogu.serve.complete import CLIENT_GONE, complete
    from mogu.serve.page import playground
    from mogu.serve.stream import ClientGone, while_connected
except ImportError as error:
    raise MissingExtraError(str(error.name).split(".")[0], "serve") from error

from mogu import __version__
from mogu.serve import replies, schemas
from mogu.serve.answers import Answers, read
from mogu.serve.auth import Authenticate
from mogu.serve.errors import INVALID, ApiError, from_validation, shutting_down, unknown_model
from mogu.serve.limits import Limit, Observe
from mogu.serve.requests import Engine, Opening
from mogu.serve.settings import Settings
from mogu.serve.state import State

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A field that is missing, unknown, unsupported or out of range; its name is in `param`"},
    401: {"description": "No API key, or a wrong one"},
    403: {"description": "Less protection than is served, without leave"},
    404: {"description": "No such model"},
    408: {"description": "The body did not arrive in time"},
    413: {"description": "A body that is too long"},
    429: {"description": "The queue is full; see Retry-After"},
    500: {"description": "Our fault"},
    502: {"description": "The engine that continues answers failed"},
    503: {"description": "The server is shutting down"},
    504: {"description": "No complete answer in time"},
}
for _told in _ERRORS.values():
    _told["model"] = replies.Failed
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "An answer, or a stream"}
}
_CODES = {
    400: "invalid_request",
    404: "unknown_url",
    405: "method_not_allowed",
    408: "timeout",
    413: "request_too_large",
}


def create_app(engine: Engine, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> FastAPI:
    """An application that answers with ``engine``; it closes it when it ends.

    ``app.state.mogu`` is the :class:`mogu.serve.state.State`.
    """
    state = State(engine, tokenizer, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await state.close_engine()  # what had time to finish has finished

    app = FastAPI(title="mogu", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.mogu = state
    app.include_router(_completions(state))
    app.include_router(_others(state))
    if settings.playground:
        app.include_router(playground(settings))
    _handle_errors(app)
    app.add_middleware(Limit, settings.max_body, settings.timeout, lambda: state.draining)
    app.add_middleware(Authenticate, settings.keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Observe, state.begun, state.done)
    _describe(app, bool(settings.keys))
    return app


def _completions(state: State) -> APIRouter:
    router = APIRouter(responses=_ERRORS)

    @router.post("/v1/chat/completions", response_model=replies.ChatCompletion, responses=_STREAM)
    async def chat_completions(body: schemas.ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await complete(state, request, body)

    @router.post("/v1/completions", response_model=replies.Completion, responses=_STREAM)
    async def completions(body: schemas.CompletionRequest, request: Request) -> Response:
        """Go on with texts or token ids."""
        return await complete(state, request, body)

    @router.post("/v1/moderations", response_model=replies.Moderation)
    async def moderations(body: schemas.ModerationRequest, request: Request) -> Response:
        """Tell the risk of texts or conversations, at the cost of reading them."""
        ids = await asyncio.to_thread(state.planned, lambda: state.planner.moderation(body))
        deadline = request.scope["mogu.note"].arrived + state.settings.timeout
        answers: Answers | None = None
        try:
            answers = read(state.engine, ids, deadline=deadline, timeout=state.settings.timeout)
            openings = await while_connected(request, _openings(answers, len(ids)))
        except ClientGone:
            state.metrics.disconnects.inc()
            return Response(status_code=CLIENT_GONE)
        except Exception as error:
            raise state.told(error) from error
        finally:
            if answers is not None:
                answers.cancel()
        for opening in openings:
            state.metrics.opened(opening)
        results = [_moderated(opening.risk or 0.0, state.served.risk_threshold) for opening in openings]
        told = replies.Moderation(id=f"modr-{uuid.uuid4().hex}", model=state.served.name, results=results)
        return JSONResponse(told.model_dump())

    return router


async def _openings(answers: Answers, count: int) -> list[Opening]:
    found: dict[int, Opening] = {}
    while answers.open:
        index, event = await answers.next()
        assert isinstance(event, Opening)
        found[index] = event
    return [found[index] for index in range(count)]


def _moderated(risk: float, threshold: float) -> replies.ModerationResult:
    flagged = risk > threshold
    return replies.ModerationResult(
        flagged=flagged,
        categories=replies.Categories(malicious=flagged),
        category_scores=replies.Scores(malicious=risk),
        category_applied_input_types=replies.InputTypes(malicious=["text"]),
    )


def _others(state: State) -> APIRouter:
    router = APIRouter()
    kept: dict[int | str, dict[str, Any]] = {code: _ERRORS[code] for code in (401, 404, 500, 503)}

    @router.get("/v1/models", response_model=replies.Models, responses=kept)
    async def models() -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [_model(state)]})

    @router.get("/v1/models/{model:path}", response_model=replies.Model, responses=kept)
    async def model(model: str) -> Response:
        """What is known of it."""
        if model != state.served.name:
            raise unknown_model(model)
        return JSONResponse(_model(state))

    @router.get("/health", response_model=replies.State)
    async def health() -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    @router.get("/ready", response_model=replies.State, responses={503: _ERRORS[503]})
    async def ready() -> Response:
        """Whether it takes requests."""
        if state.draining:
            raise shutting_down()
        state.engine.load()
        return JSONResponse({"status": "ready"})

    @router.get(
        "/metrics", responses={200: {"content": {"text/plain": {}}}, 401: _ERRORS[401]}, response_class=Response
    )
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(await asyncio.to_thread(state.metrics.text), media_type=CONTENT_TYPE_LATEST)

    return router


def _model(state: State) -> dict[str, Any]:
    told: dict[str, Any] = {"id": state.served.name, "object": "model", "created": state.served.created}
    return {**told, "owned_by": "mogu", "max_model_len": state.engine.context}


def _handle_errors(app: FastAPI) -> None:
    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        request.scope["mogu.note"].more["error"] = error.code
        return JSONResponse(error.body(), error.status, headers=error.headers)

    async def wrong_body(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return await api_error(request, from_validation(error.errors(), schemas.FIELDS))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = INVALID if error.status_code < 500 else "server_error"
        code = _CODES.get(error.status_code, "http_error")
        told = ApiError(error.status_code, str(error.detail), code=code, kind=kind, headers=error.headers)
        return await api_error(request, told)

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, wrong_body)
    app.add_exception_handler(HTTPException, http_error)


def _describe(app: FastAPI, guarded: bool) -> None:
    """Make ``/openapi.json`` true: a wrong body gets 400 and not 422, and keys are needed where there are keys."""
    generate = app.openapi

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            told = generate()
            for path, methods in told["paths"].items():
                for method in methods.values():
                    method["responses"].pop("422", None)
                    if guarded and path.startswith(("/v1/", "/metrics")):
                        method["security"] = [{"key": []}]
            parts = told.setdefault("components", {})
            for name in ("HTTPValidationError", "ValidationError"):
                parts.get("schemas", {}).pop(name, None)
            if guarded:
                parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = told
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]
