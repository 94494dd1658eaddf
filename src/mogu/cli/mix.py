"""``mogu mix``: a data set of a task and what brings security back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from mogu.cli import options
from mogu.cli.view import print_table


def mix(
    data: Annotated[str, typer.Option(metavar="TASK", help="JSONL or CSV of instructions with answers; FILE:FIELD.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the data set.")],
    security: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Built data set to mix in; default: malicious and borderline seeds."),
    ] = None,
    share: Annotated[
        float | None, typer.Option(metavar="S", help="Share of the training rows that are the task's; default: all.")
    ] = None,
    config: options.Config = None,
) -> None:
    """Mix a task's rows, which keep their own answers, with rows that bring security back after fine-tuning."""
    options.writable_folder(out)
    from mogu.data.mix import mix as mix_rows
    from mogu.data.mix import security_rows, task_rows

    inputs = {"task": Path(data).name, "security": "seeds" if security is None else security.name}
    rows = mix_rows(task_rows(data), security_rows(security), out, share=share, inputs=inputs)
    counts = Counter((row.split, "borderline" if row.borderline else row.label, row.source) for row in rows)
    print_table([["split", "kind", "source", "rows"], *([*key, str(count)] for key, count in sorted(counts.items()))])
    print(f"\ndata: {out}\nTrain on it: mogu train --model MODEL --base-adapter LORA --data {out} --out RUN")
