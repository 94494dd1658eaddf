"""``mogu serve``: a model behind OpenAI's API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mogu.cli import options
from mogu.errors import ConfigError

if TYPE_CHECKING:
    from mogu.loading import Loaded
    from mogu.serve.requests import Engine
    from mogu.serve.settings import Served
    from mogu.serve.upstream import Upstream


def serve(
    model: options.OptionalModel = None,
    adapter: options.Adapter = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Address; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="API keys, one a line; also $MOGU_API_KEY, $MOGU_API_KEYS (commas)."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What clients call the model.")] = None,
    max_rows: Annotated[int, typer.Option(metavar="N", min=1, help="Most answers in the making at once.")] = 16,
    kv_tokens: Annotated[
        int, typer.Option(metavar="N", min=16, help="Most tokens whose keys and values are held, of all answers.")
    ] = 16384,
    prefill_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most prompt tokens that are read between two steps.")
    ] = 256,
    queue: Annotated[int, typer.Option(metavar="N", min=1, help="Most answers that wait; others get 429.")] = 128,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, help="From the arrival of a request to its last token.")
    ] = 600.0,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, help="That running answers have after SIGTERM.")
    ] = 30.0,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most new tokens of one answer; default: the context.")
    ] = None,
    max_choices: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most answers, or moderated inputs, of one request.")
    ] = 16,
    max_body: Annotated[int, typer.Option(metavar="BYTES", min=1024, help="Longest request.")] = 1 << 20,
    cors_origin: Annotated[
        str | None, typer.Option(metavar="ORIGIN[,ORIGIN…]", help="Web pages that may ask; default: none.")
    ] = None,
    allow_client_overrides: Annotated[
        bool, typer.Option("--allow-client-overrides", help="Clients may ask for less protection than is served.")
    ] = False,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts and answers into the log, too.")
    ] = False,
    playground: Annotated[
        bool | None,
        typer.Option(
            "--playground/--no-playground",
            help="A page where people see the routing; default: where only this machine can ask, and needs no key.",
        ),
    ] = None,
    tail_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Continue heads on an engine with the plain base: http://HOST:PORT/v1."),
    ] = None,
    tail_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What it calls the base; default: its one model.")
    ] = None,
    tail_api_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable with its API key.")
    ] = None,
    tail_requests: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most answers, waiting or in the making here and there.")
    ] = 256,
    routed_tokens: options.RoutedTokens = None,
    dial: options.Dial = None,
    handover: options.Handover = None,
    risk_threshold: options.RiskThreshold = None,
    template: options.Template = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    offload: options.Offload = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a hub model brings along.")
    ] = False,
    config: options.Config = None,
) -> None:
    """Serve a model to any OpenAI client: chat, completions, and moderation by the router's risk."""
    from mogu.serve import logs
    from mogu.serve.app import create_app
    from mogu.serve.server import bind, run, url_of
    from mogu.serve.settings import LOOPBACK, Settings, read_keys

    keys = read_keys(api_key_file)
    origins = tuple(origin.strip() for origin in (cors_origin or "").split(",") if origin.strip())
    upstream = upstream_of(tail_url, tail_model, tail_api_key_env)
    bound = bind(host, port)
    from mogu.cli import loading
    from mogu.serve.engine import LocalEngine

    loaded = loading.load(
        model,
        adapter,
        template=template,
        dtype=dtype,
        device=device,
        quantize=quantize,
        offload=offload,
        trust_remote_code=trust_remote_code,
    )
    guard: dict[str, Any] = {
        "routed_tokens": routed_tokens,
        "dial": dial,
        "handover": handover,
        "risk_threshold": risk_threshold,
    }
    loading.routing_options(loaded, **guard)
    served = served_by(loaded, name, guard)
    settings = Settings(
        served=served,
        dial=dial or 0.0,
        allow_overrides=allow_client_overrides,
        timeout=timeout,
        grace=grace,
        max_body=max_body,
        max_tokens=max_tokens,
        max_choices=max_choices,
        keys=keys,
        cors_origins=origins,
        log_prompts=log_prompts,
        playground=(host in LOOPBACK and not keys) if playground is None else playground,
    )
    logs.to_stderr()
    engine: Engine = LocalEngine(
        loaded.model, loaded.tokenizer, rows=max_rows, kv_tokens=kv_tokens, waiting=queue, prefill_tokens=prefill_tokens
    )
    if upstream is not None:
        engine = with_tail(engine, upstream, tail_requests)
    app = create_app(engine, loaded.tokenizer, settings)
    if host not in LOOPBACK and not keys:
        logs.tell("others can reach this server, and it asks for no API key: give --api-key-file", logs.WARNING)
    typer.echo(f"{served.name} at {url_of(bound)}/v1 (Ctrl-C ends)")
    if settings.playground:
        typer.echo(f"playground at {url_of(bound)}/playground")
    run(app, bound)


def upstream_of(url: str | None, model: str | None, variable: str | None) -> Upstream | None:
    """The engine elsewhere, if one is named.

    Raises:
        ConfigError: The URL is none, the variable holds no key, or either is missing.
    """
    from mogu.serve.upstream import Upstream

    if url is None:
        if model or variable:
            raise ConfigError(f"{'--tail-model' if model else '--tail-api-key-env'} needs --tail-url")
        return None
    key = os.environ.get(variable, "").strip() if variable else None
    if key == "":
        raise ConfigError(f"the environment variable {variable} is not set; it must hold the engine's key")
    return Upstream(url, model, key)


def with_tail(head: Any, upstream: Upstream, most: int) -> Engine:
    """``head``, whose answers ``upstream`` continues; it may come up later, but not be the wrong one.

    Raises:
        ConfigError: There is no head, or the engine elsewhere refuses, or serves something else.
    """
    from mogu.serve import logs
    from mogu.serve.errors import TailError
    from mogu.serve.tail import TailEngine

    engine = TailEngine(head, upstream, most=most)
    try:
        engine.look()
    except TailError as error:
        if not error.away:
            raise ConfigError(f"{upstream.url}: {error}") from error
        logs.tell("the engine at --tail-url cannot be reached yet", logs.WARNING, url=upstream.url)
    return engine


def served_by(loaded: Loaded, name: str | None, guard: dict[str, Any]) -> Served:
    """What the HTTP side must know of ``loaded``; ``guard`` are the operator's own settings of the routing.

    Raises:
        ConfigError: The hand-over is unknown, or needs a risk that is not calibrated.
    """
    from mogu.adapter import store
    from mogu.adapter.config import HANDOVERS
    from mogu.adapter.model import active_config, mogu_layers
    from mogu.serve.settings import Served

    called = name or public_name(loaded.name)
    if loaded.adapter is None:
        return Served(called, loaded.template)
    found = active_config(loaded.model)
    if (threshold := guard.get("risk_threshold")) is not None:
        found.risk_threshold = threshold  # the engine reads it there
    handover = guard.get("handover") or found.handover
    if handover not in HANDOVERS:
        raise ConfigError(f"unknown hand-over {handover!r}; choose from {', '.join(HANDOVERS)}")
    if handover == "risk" and found.risk is None:
        raise ConfigError("--handover risk needs a calibrated risk, which this adapter has not")
    routed_tokens = guard.get("routed_tokens")
    return Served(
        called,
        loaded.template,
        routed_tokens=found.routed_tokens if routed_tokens is None else routed_tokens,
        handover=handover,
        risk_threshold=found.risk_threshold,
        calibrated=found.risk is not None,
        layers=tuple(layer for layer, _ in mogu_layers(loaded.model)),
        fingerprint=f"mogu_{store.digest(loaded.adapter)[:12]}",
    )


def public_name(model: str) -> str:
    """A name for clients: a hub id as it is, of a path the last part."""
    path = Path(model).expanduser()
    local = model.startswith((".", "/", "~")) or model.count("/") != 1 or path.exists()
    return path.name.removesuffix(".gguf") if local else model
