"""``mogu train``: an adapter from a built data set."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mogu import processes
from mogu.cli import options
from mogu.cli.view import print_table, progress_view
from mogu.errors import ConfigError

if TYPE_CHECKING:
    from mogu.recipe import Recipe


def train(
    model: options.Model,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of a built data set (see mogu data build).")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Run folder; the adapter goes to RUN/adapter.")],
    recipe: options.RecipeName = "default",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on after the last finished step, or start over.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it takes: steps, memory and time; tries a few steps.")
    ] = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    offload: options.Offload = None,
    base_adapter: options.BaseAdapter = None,
    track: options.Track = None,
    config: options.Config = None,
) -> None:
    """Train a MoGU adapter on a data set. Run again to go on after an interruption."""
    from mogu.recipe import load_recipe

    chosen = load_recipe(recipe)
    if dry_run:
        if processes.count() > 1:
            raise ConfigError("--dry-run tries one process; start it without a launcher")
        _rehearse(model, data, chosen, dtype, device, quantize, offload, base_adapter)
        return
    options.writable_folder(out)
    with progress_view() as progress:
        progress.begin("model", f"model: loads {model}")
        from mogu.data.rows import read_rows
        from mogu.finetuned import merge_lora
        from mogu.models import load_base
        from mogu.train.run import train as run_training
        from mogu.train.track import trackers

        tracked, rows = trackers(track), read_rows(data)
        if processes.sharded() and (quantize is not None or offload is not None):
            raise ConfigError("FSDP spreads a whole base; leave out --quantize and --offload, or use ddp.yaml")
        at_first = "cpu" if processes.sharded() else device  # whole, a base that needs FSDP fits no device
        base, tokenizer = load_base(model, dtype=dtype, device=at_first, quantize=quantize, offload=offload)
        if base_adapter is not None:
            base = merge_lora(base, base_adapter)
        progress.end(f"{len(rows)} rows of data")
        if not resume:
            processes.from_main(lambda: shutil.rmtree(out / "stages", ignore_errors=True))
        trained = run_training(base, tokenizer, rows, chosen, out, model_name=model, track=tracked, progress=progress)
    print(f"adapter: {trained.adapter}\nTry it: mogu chat --adapter {out}")


def _rehearse(
    model: str,
    data: Path,
    recipe: Recipe,
    dtype: str | None,
    device: str | None,
    quantize: str | None,
    offload: str | None,
    base_adapter: Path | None,
) -> None:
    """Say what training would take; weights that do not fit are not loaded."""
    with progress_view() as progress:
        progress.begin("model", f"model: loads {model}")
        from mogu.data.rows import read_rows
        from mogu.finetuned import merge_lora
        from mogu.models import load_base
        from mogu.train.advice import conclusion, text_table
        from mogu.train.estimate import estimate, weigh

        rows = read_rows(data)
        found = weigh(model, dtype=dtype, device=device, quantize=quantize, offload=offload)
        if found.fits:
            base, tokenizer = load_base(model, dtype=dtype, device=device, quantize=quantize, offload=offload)
            if base_adapter is not None:
                base = merge_lora(base, base_adapter)
        progress.end(f"{len(rows)} rows of data")
        if found.fits:
            found = estimate(base, tokenizer, rows, recipe, model_name=model, progress=progress)
    if found.stages:
        print_table(text_table(found))
        print()
    print("\n".join(conclusion(found, recipe)))
