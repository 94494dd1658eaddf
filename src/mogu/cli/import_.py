"""``mogu import``: the weights that the authors' code saves, as an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from mogu.cli import options
from mogu.cli.view import progress_view
from mogu.errors import ConfigError
from mogu.recipe import RECIPE_FILE


def import_(
    glad: Annotated[Path, typer.Option(metavar="DIR", help="LoRA folder of the glad responder.")],
    unwill: Annotated[Path, typer.Option(metavar="DIR", help="LoRA folder of the unwilling responder.")],
    router: Annotated[Path, typer.Option(metavar="FILE.pth", help="Routers as the authors' code saves them.")],
    base: Annotated[str, typer.Option(metavar="MODEL", help="The base that they were trained on.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Run folder; the adapter goes to RUN/adapter.")],
    template: options.Template = None,
    dtype: options.Dtype = None,
    config: options.Config = None,
) -> None:
    """Import a published MoGU training: two LoRA folders and a router file."""
    from mogu.chat import TEMPLATES

    if template is not None and template not in TEMPLATES:
        raise ConfigError(f"unknown chat template {template!r}; choose from {', '.join(sorted(TEMPLATES))}")
    options.writable_folder(out)
    with progress_view() as progress:
        progress.begin("import", f"import: puts the weights on {base}")
        from mogu.adapter import store
        from mogu.adapter.model import active_config
        from mogu.adapter.published import import_published
        from mogu.models import load_base
        from mogu.versions import versions

        model = import_published(load_base(base, dtype=dtype, device="cpu")[0], glad, unwill, router, base_name=base)
        shape = active_config(model)
        recipe = {
            "name": "imported",
            "description": "Weights trained elsewhere; only template and shape are known.",
            "template": template,
            "adapter": {"rank": shape.r, "alpha": float(shape.lora_alpha), "router_width": shape.router_width},
        }
        record = {"model": base, "imported": [str(glad), str(unwill), str(router)], "versions": versions()}
        folder = store.save(
            model,
            out / "adapter",
            {RECIPE_FILE: yaml.safe_dump(recipe, sort_keys=False), "mogu.json": json.dumps(record, indent=1) + "\n"},
        )
        progress.end(f"rank {shape.r}")
    print(f"adapter: {folder}\nTry it: mogu chat --adapter {out}")
