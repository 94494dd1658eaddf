"""``mogu inspect``: what the routers make of a prompt and its answer, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mogu.cli import options


def inspect(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt.")],
    adapter: Annotated[Path, typer.Option(metavar="RUN", help="Run folder or adapter folder.")],
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="Where the page goes.")],
    model: options.OptionalModel = None,
    max_new_tokens: options.MaxNewTokens = 64,
    system: options.System = None,
    routed_tokens: options.RoutedTokens = None,
    dial: options.Dial = None,
    handover: options.Handover = None,
    risk_threshold: options.RiskThreshold = None,
    template: options.Template = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    offload: options.Offload = None,
    config: options.Config = None,
) -> None:
    """Show as a page what the routers make of a prompt and its answer, token by token and layer by layer."""
    options.writable_folder(out.parent)
    from mogu.cli import loading
    from mogu.data.rows import write_text
    from mogu.inspect import read, render

    loaded = loading.load(
        model, adapter, template=template, dtype=dtype, device=device, quantize=quantize, offload=offload
    )
    settings = loading.routing_options(
        loaded, routed_tokens=routed_tokens, dial=dial, handover=handover, risk_threshold=risk_threshold
    )
    found = read(
        loaded.model,
        loaded.tokenizer,
        prompt,
        name=loaded.name,
        system=system,
        template=loaded.template,
        max_new_tokens=max_new_tokens,
        **settings,
    )
    write_text(out, render(found))
    risk = "" if found.risk is None else f"risk {found.risk:.2f}, "
    print(f"{risk}{found.routed_tokens} routed tokens: {out}")
