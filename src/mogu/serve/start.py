"""From what an operator asked for to what a server is made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mogu.errors import ConfigError
from mogu.serve.settings import Served

if TYPE_CHECKING:
    from mogu.loading import Loaded
    from mogu.serve.requests import Engine
    from mogu.serve.upstream import Upstream


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
