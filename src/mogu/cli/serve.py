"""``mogu serve``: a model behind OpenAI's API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from mogu.cli import options
from mogu.cli import serve_options as asked

if TYPE_CHECKING:
    from mogu.serve.requests import Engine


def serve(
    model: options.OptionalModel = None,
    adapter: options.Adapter = None,
    host: asked.Host = "127.0.0.1",
    port: asked.Port = 8000,
    api_key_file: asked.ApiKeyFile = None,
    name: asked.Name = None,
    max_rows: asked.MaxRows = 16,
    kv_tokens: asked.KvTokens = 16384,
    prefill_tokens: asked.PrefillTokens = 256,
    queue: asked.Queue = 128,
    timeout: asked.Timeout = 600.0,
    grace: asked.Grace = 30.0,
    max_tokens: asked.MaxTokens = None,
    max_choices: asked.MaxChoices = 16,
    max_body: asked.MaxBody = 1 << 20,
    cors_origin: asked.CorsOrigin = None,
    allow_client_overrides: asked.AllowClientOverrides = False,
    log_prompts: asked.LogPrompts = False,
    playground: asked.Playground = None,
    tail_url: asked.TailUrl = None,
    tail_model: asked.TailModel = None,
    tail_api_key_env: asked.TailApiKeyEnv = None,
    tail_requests: asked.TailRequests = 256,
    routed_tokens: options.RoutedTokens = None,
    dial: options.Dial = None,
    handover: options.Handover = None,
    risk_threshold: options.RiskThreshold = None,
    template: options.Template = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    offload: options.Offload = None,
    trust_remote_code: asked.TrustRemoteCode = False,
    config: options.Config = None,
) -> None:
    """Serve a model to any OpenAI client: chat, completions, and moderation by the router's risk."""
    from mogu.serve import logs
    from mogu.serve.app import create_app
    from mogu.serve.server import bind, run, url_of
    from mogu.serve.settings import LOOPBACK, Settings, read_keys
    from mogu.serve.start import served_by, upstream_of, with_tail

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
