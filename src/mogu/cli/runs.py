"""``mogu runs``: the runs on this machine, with their figures."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mogu.cli import options
from mogu.cli.view import print_table
from mogu.runs import KINDS, RunInfo, find_runs


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to look, also in folders below.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, with the base's rates.")] = False,
    config: options.Config = None,
) -> None:
    """List runs: base, recipe, refusals of malicious, benign and borderline held-out prompts, and how far each is."""
    found = find_runs(folder)
    if as_json:
        print(json.dumps([_record(run) for run in found], indent=1, ensure_ascii=False))
    elif found:
        header = ["run", "base", "recipe", "changed", *KINDS, "shift", "layers", "state"]
        print_table([header, *(_row(run) for run in found)])
    else:
        print(f"no runs in {folder}; make one: mogu demo", file=sys.stderr)


def _row(run: RunInfo) -> list[str]:
    return [
        str(run.folder),
        run.model or "–",
        run.recipe or "–",
        time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed)),
        *(f"{run.refused[kind]:.0%}" if kind in run.refused else "–" for kind in KINDS),
        "–" if run.shift is None else f"{run.shift:+g}",
        "–" if run.layers is None else str(len(run.layers)),
        run.state,
    ]


def _record(run: RunInfo) -> dict[str, Any]:
    changed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.changed))
    return {**dataclasses.asdict(run), "folder": str(run.folder), "changed": changed}
