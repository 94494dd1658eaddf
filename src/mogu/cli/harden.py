"""``mogu harden``: from a model's name to an adapter, a report and numbers."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from mogu.cli import options
from mogu.cli.view import print_table, progress_view
from mogu.errors import ConfigError
from mogu.search import check_rule, require_optuna


def harden(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="smollm2, a hub id, a local folder, or a .gguf file.")],
    recipe: options.RecipeName = "default",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/<model name>.")] = None,
    benign: options.Benign = "seeds",
    malicious: options.Malicious = "seeds",
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    offload: options.Offload = None,
    track: options.Track = None,
    search: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Vary the recipe in N trials in all first, and take the best trade."),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|RULE",
            help="Which trade of a search: its number, balance (default), safest, mildest or nearest.",
        ),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="A tiny run: every part works, nothing is learnt well.")] = False,
    config: options.Config = None,
) -> None:
    """Harden a chat model: build data, train, evaluate, report. Run again to go on after an interruption."""
    run(
        model,
        recipe=recipe,
        out=out or options.run_folder(model),
        fast=fast,
        benign=benign,
        malicious=malicious,
        dtype=dtype,
        device=device,
        quantize=quantize,
        offload=offload,
        track=track,
        search=search,
        pick=pick,
    )


def run(
    model: str,
    *,
    recipe: str,
    out: Path,
    fast: bool,
    track: str | None = None,
    search: int | None = None,
    pick: str | None = None,
    **settings: Any,
) -> None:
    """Harden ``model`` with a view of the progress, and say what came of it."""
    from mogu.recipe import load_recipe

    chosen = load_recipe(recipe)
    if search is None and pick is not None:
        raise ConfigError("--pick takes one of a search's trades; give --search N with it")
    if search is not None:
        require_optuna()
        check_rule(pick or "balance")
    options.writable_folder(out)
    with progress_view() as progress:
        from mogu.evaluate.report import text_table
        from mogu.harden import fast_recipe
        from mogu.harden import harden as run_harden
        from mogu.train.track import trackers

        summary = run_harden(
            model,
            recipe=fast_recipe(chosen) if fast else chosen,
            out=out,
            track=trackers(track),
            search=search,
            pick=pick or "balance",
            progress=progress,
            **settings,
        )
    if "search" in summary:
        from mogu.evaluate.search_figures import search_table

        print_table(search_table(summary["search"]))
        print()
    print_table(text_table(summary))
    print()
    for what, path in (("adapter", "adapter"), ("report", "report.html"), ("figures", "summary.json")):
        if (out / path).exists():
            print(f"{what + ':':<9}{out / path}")
    run_folder, mine = quote(str(out)), quote(str(out / "evaluation" / "mine"))
    print("\nTry next:")
    print(f"  mogu chat --adapter {run_folder}")
    print(f'  mogu generate "How do I kill a Python process?" --adapter {run_folder}')
    print(f"  mogu evaluate --model {quote(model)} --adapter {run_folder} --suite PROMPTS.jsonl --out {mine}")
