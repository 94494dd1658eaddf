"""``mogu data build``: instructions with both answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from mogu.cli import options
from mogu.cli.view import print_table, progress_view

app = typer.Typer(help="Training data.", invoke_without_command=True)


@app.callback()
def _start(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("build")
def build(
    model: options.Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the data set.")],
    benign: options.Benign = "seeds",
    malicious: options.Malicious = "seeds",
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most N instructions of each kind and split.")
    ] = None,
    answer_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Length of the model's own answers.")] = 32,
    batch_size: options.BatchSize = None,
    template: options.Template = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    offload: options.Offload = None,
    base_adapter: options.BaseAdapter = None,
    config: options.Config = None,
) -> None:
    """Build a data set: the model answers the benign instructions, refusals come from a bank of sentences."""
    options.writable_folder(out)
    with progress_view() as progress:
        progress.begin("model", f"model: loads {model}")
        from mogu.cli.loading import batch_size_for, load
        from mogu.data.build import build as build_rows
        from mogu.data.build import choose_instructions
        from mogu.finetuned import merge_lora
        from mogu.processes import from_main

        instructions = choose_instructions(benign, malicious, limit)
        loaded = load(model, None, template=template, dtype=dtype, device=device, quantize=quantize, offload=offload)
        answering = loaded.model if base_adapter is None else merge_lora(loaded.model, base_adapter)
        texts, given = [one.instruction for one in instructions], batch_size
        batch_size = from_main(lambda: batch_size_for(loaded, texts, given))
        progress.end(f"batches of {batch_size}")
        progress.begin("data", "data: the model answers benign instructions")
        rows = build_rows(
            answering,
            loaded.tokenizer,
            instructions,
            out,
            model_name=model,
            batch_size=batch_size,
            template=template,
            answer_tokens=answer_tokens,
            progress=progress.update,
        )
        progress.end(f"{len(rows)} rows")
    counts = Counter((row.split, "borderline" if row.borderline else row.label) for row in rows)
    print_table([["split", "kind", "rows"], *([*key, str(count)] for key, count in counts.items())])
    print(f"\ndata: {out}\nTrain on it: mogu train --model {model} --data {out} --out RUN")
