"""A server in a process of its own, so that clients see what users see and each side's processor time shows.

``python benchmarks/_server.py KIND`` serves until SIGTERM: ``tiny`` is a random model of three layers with a strong
adapter, a number the embedded model with an adapter of random numbers on the layers above that share of the depth.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

CLIENTS = 16
TESTS = Path(__file__).parents[1] / "tests"
TINY_KV, TINY_BODY = 512, 20_000
"""Little room, so that rows are put back and read again; bytes of a body."""


class Process:
    """The server under way."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self._process = psutil.Process(pid)

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int(self._process.memory_info().rss)

    @property
    def cpu(self) -> float:
        """Processor seconds so far."""
        times = self._process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def serving(kind: str) -> Iterator[Process]:
    """A server of such a kind; ended as an operator ends it, and that it ends well is part of what is tried."""
    process = subprocess.Popen([sys.executable, __file__, kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit(f"the server did not start (status {process.wait()})")
        yield Process(url, process.pid)
        process.send_signal(signal.SIGTERM)
        if status := process.wait(60):
            raise SystemExit(f"the server ended with status {status}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def tiny() -> tuple[Any, Any, Any, dict[str, Any]]:
    """Model, tokenizer, settings, and options of the engine."""
    sys.path[:0] = [str(TESTS), str(TESTS / "serve")]
    import small
    import world

    settings = world.settings(allow_overrides=True, max_body=TINY_BODY)
    options = {"rows": 8, "kv_tokens": TINY_KV, "prefill_tokens": 32, "waiting": 128}
    return world.model(), small.tokenizer(), settings, options


def embedded(layers_from: float) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The embedded model with an adapter of the published shape and random numbers, whose answers never end early."""
    import torch
    from peft import get_peft_model

    import mogu  # noqa: F401
    from mogu.adapter.config import MoguConfig
    from mogu.models import load_base
    from mogu.recipe import AdapterRecipe, routed_layers
    from mogu.serve.settings import Served, Settings

    torch.manual_seed(0)
    model, tokenizer = load_base("smollm2")
    model.generation_config.eos_token_id = None
    layers = routed_layers(AdapterRecipe(layers_from=layers_from), model.config.num_hidden_layers)
    config = MoguConfig(router="folded", layers_to_transform=layers)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "mogu_" in name:
                parameter.normal_(std=0.02)
    routed = tuple(layers or range(model.config.num_hidden_layers))
    served = Served("smollm2", routed_tokens=config.routed_tokens, layers=routed)
    options = {"rows": CLIENTS, "kv_tokens": CLIENTS * 512}
    return adapted.requires_grad_(False).eval(), tokenizer, Settings(served, allow_overrides=True), options


def main() -> None:
    from mogu.serve.app import create_app
    from mogu.serve.engine import LocalEngine
    from mogu.serve.server import bind, run, url_of

    kind = sys.argv[1]
    model, tokenizer, settings, options = tiny() if kind == "tiny" else embedded(float(kind))
    app = create_app(LocalEngine(model, tokenizer, **options), tokenizer, settings)
    bound = bind("127.0.0.1", 0)
    bound.listen()
    print(url_of(bound), flush=True)
    run(app, bound)


if __name__ == "__main__":
    main()
