"""``mogu serve`` as a Ray Serve application: replicas, autoscaling, health.

    pip install 'mogu-llm[embedded,serve,ray]'
    MOGU_ADAPTER=runs/demo serve run examples.ray_serve:app        # from the repository; port 8000

Settings, from the environment: MOGU_ADAPTER (a run folder that every node can read), MOGU_MODEL (its base, where the
run does not tell), MOGU_API_KEY, MOGU_REPLICAS_MIN, MOGU_REPLICAS_MAX, MOGU_CPUS and MOGU_GPUS (of one replica).
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI
from ray import serve

ROWS = 16
"""Answers that one replica makes at once."""


def build() -> FastAPI:
    """The application of one replica, with a model of its own; called where it runs."""
    from mogu.loading import load_run
    from mogu.serve import logs
    from mogu.serve.app import create_app
    from mogu.serve.engine import LocalEngine
    from mogu.serve.settings import Settings, read_keys
    from mogu.serve.start import served_by

    adapter = os.environ.get("MOGU_ADAPTER")
    loaded = load_run(Path(adapter) if adapter else None, base=os.environ.get("MOGU_MODEL"))
    engine = LocalEngine(loaded.model, loaded.tokenizer, rows=ROWS, kv_tokens=16384, waiting=8 * ROWS)
    logs.to_stderr()
    return create_app(engine, loaded.tokenizer, Settings(served=served_by(loaded, None, {}), keys=read_keys(None)))


@serve.deployment(
    ray_actor_options={
        "num_cpus": float(os.environ.get("MOGU_CPUS", "1")),
        "num_gpus": float(os.environ.get("MOGU_GPUS", "0")),
        "runtime_env": {"env_vars": {name: value for name, value in os.environ.items() if name.startswith("MOGU_")}},
    },
    autoscaling_config={
        "min_replicas": int(os.environ.get("MOGU_REPLICAS_MIN", "1")),
        "max_replicas": int(os.environ.get("MOGU_REPLICAS_MAX", "4")),
        "target_ongoing_requests": ROWS,
    },
    max_ongoing_requests=9 * ROWS,  # those in the making and in the queue; the application itself answers 429
    graceful_shutdown_timeout_s=60,
    health_check_period_s=10,
    health_check_timeout_s=30,
)
@serve.ingress(build)
class Replica:
    """One model."""

    app: FastAPI

    def check_health(self) -> None:
        """Called by Ray; a replica for which it raises is replaced."""
        state = self.app.state.mogu
        if state.draining:
            raise RuntimeError("this replica takes no more requests")
        state.engine.load()


app = Replica.bind()  # type: ignore[attr-defined]
