"""``mogu evaluate``: how often a model refuses, complies or breaks down on suites of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mogu.cli import options
from mogu.cli.view import print_table, progress_view, suite_table
from mogu.errors import ConfigError


def evaluate(
    suite: Annotated[
        str, typer.Option(metavar="FILE[,FILE…]", help="Prompts: .jsonl, .csv or .txt; FILE:FIELD names the field.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where responses and numbers go.")],
    model: options.OptionalModel = None,
    adapter: options.Adapter = None,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Length of the answers.")] = 64,
    batch_size: options.BatchSize = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N prompts of a suite.")] = None,
    template: options.Template = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    config: options.Config = None,
) -> None:
    """Answer suites of prompts and count refusals. Run again to go on after an interruption."""
    suites = read_suites(suite, limit)
    options.writable_folder(out)
    with progress_view() as progress:
        progress.begin("model", f"model: loads {model or adapter}")
        from mogu.adapter.store import digest
        from mogu.cli.loading import batch_size_for, load
        from mogu.evaluate.run import evaluate_suite

        loaded = load(model, adapter, template=template, dtype=dtype, device=device, quantize=quantize)
        texts = [prompt["instruction"] for prompts in suites.values() for prompt in prompts]
        batch_size = batch_size_for(loaded, texts, batch_size)
        progress.end(f"batches of {batch_size}")
        settings = {"model": loaded.name, "adapter": loaded.adapter and digest(loaded.adapter)}
        results = {}
        for name, prompts in suites.items():
            progress.begin(name, f"{name}: {len(prompts)} prompts")
            results[name] = evaluate_suite(
                loaded.model,
                loaded.tokenizer,
                prompts,
                max_new_tokens=new_tokens,
                batch_size=batch_size,
                template=loaded.template,
                out=out if len(suites) == 1 else out / name,
                settings=settings,
                progress=progress,
            )
            progress.end(", ".join(f"{count} {label}" for label, count in results[name]["counts"].items() if count))
    print_table(suite_table(results, "mogu" if loaded.routed else "base"))
    print(f"\nresponses: {out if len(suites) == 1 else out / '*'}/responses.jsonl")


def read_suites(sources: str, limit: int | None) -> dict[str, list[dict[str, Any]]]:
    """The prompts of each suite, by the stem of its file.

    Raises:
        ConfigError: No file, or two of one name.
        DataError: A file is missing or holds a bad row.
    """
    from mogu.data.sources import read_prompts

    suites: dict[str, list[dict[str, Any]]] = {}
    for source in filter(None, (part.strip() for part in sources.split(","))):
        path = Path(source)
        name = path.stem if path.exists() else Path(source.rpartition(":")[0] or source).stem
        if name in suites:
            raise ConfigError(f"two suites are called {name}; their results would go to the same folder")
        suites[name] = read_prompts(source)[:limit]
    if not suites:
        raise ConfigError("--suite names no file")
    return suites
