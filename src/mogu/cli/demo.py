"""``mogu demo``: the whole of MoGU on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mogu.cli import options
from mogu.cli.harden import run
from mogu.models import EMBEDDED


def demo(
    fast: Annotated[bool, typer.Option("--fast", help="A tiny run: every part works, nothing is learnt well.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run folder.")] = Path("runs/demo"),
    config: options.Config = None,
) -> None:
    """Harden the embedded model SmolLM2-135M with the quickstart recipe: offline, on a CPU."""
    run(EMBEDDED, recipe="quickstart", out=out, fast=fast, dtype="fastest")
