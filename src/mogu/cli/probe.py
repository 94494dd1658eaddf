"""``mogu probe``: in which layers it is readable what is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mogu.cli import options
from mogu.cli.view import print_table, progress_view


def probe(
    model: options.Model,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of a built data set (see mogu data build).")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the table and the page.")],
    budget: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, max=1.0, help="Layers to choose, as a share of all.")
    ] = 0.3,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="At most N rows of each kind.")] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts at a time.")] = 32,
    template: options.Template = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    offload: options.Offload = None,
    config: options.Config = None,
) -> None:
    """Probe every layer for what is asked, on harm categories and sources that the probe never saw; choose layers."""
    options.writable_folder(out)
    with progress_view() as progress:
        progress.begin("model", f"model: loads {model}")
        from mogu.data.rows import read_rows, write_text
        from mogu.evaluate.layers import layer_page, layer_table, shown
        from mogu.models import load_base
        from mogu.train.layers import probe_layers
        from mogu.versions import versions

        rows = read_rows(data)
        base, tokenizer = load_base(model, dtype=dtype, device=device, quantize=quantize, offload=offload)
        progress.end(f"{len(rows)} rows of data")
        progress.begin("probe", "probe: reads the prompts, then fits every layer")
        found = probe_layers(
            base,
            tokenizer,
            rows,
            batch_size=batch_size,
            template=template,
            limit=limit,
            progress=progress.update,
        )
        record = {"model": model, **found.record(budget), "versions": versions()}
        progress.end(f"layers {shown(record['chosen']['layers'])}")
    write_text(out / "probe.json", json.dumps(record, indent=1) + "\n")
    write_text(out / "probe.html", layer_page(record))
    print_table(layer_table(record))
    print(f"\nchosen:  {shown(record['chosen']['layers'])}")
    print(f"page:    {out}/probe.html\nfigures: {out}/probe.json")
