"""Run folders on this machine: what each was made from, how far it is, and what came of it. Reads files, no model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mogu.errors import ConfigError
from mogu.recipe import RECIPE_FILE

KINDS = ("malicious", "benign", "borderline")
"""Kinds of held-out prompts, in the order in which they are shown."""
FINISHED = "finished"
"""State of a run with a summary: ``mogu harden`` writes it last."""
TRAINED = "trained"
"""State of a run with an adapter that nothing is known to be measured on: ``mogu train`` and ``mogu import`` end so."""
_STAGES = ("glad", "unwill", "routers")


@dataclass(frozen=True)
class RunInfo:
    """What a run folder says about itself; ``None`` where it does not."""

    folder: Path
    model: str | None
    """What the user calls the base."""
    recipe: str | None
    state: str
    """``finished``, ``trained``, or the stage that an unfinished run is in: data, search, glad, unwill, routers,
    balance or evaluation."""
    changed: float
    """When the run last got somewhere: seconds since the epoch, from the files, because runs store no date."""
    refused: dict[str, float]
    """Share of held-out prompts of each kind that the hardened model refuses, in [0, 1]."""
    base_refused: dict[str, float]
    """The same for its base."""
    shift: float | None
    """δ of the router logits."""
    layers: tuple[int, ...] | None
    """Routed decoder layers."""


def find_runs(folder: str | Path) -> list[RunInfo]:
    """Run folders in ``folder`` and below it, by path; what lies inside a run is not searched.

    Raises:
        ConfigError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder}; mogu harden and mogu train make runs, by default below runs/")
    return sorted((_read(found) for found in _run_folders(folder)), key=lambda run: run.folder)


def _run_folders(folder: Path) -> Iterator[Path]:
    for place, below, files in os.walk(folder):
        path = Path(place)
        if "adapter_config.json" in files:  # an adapter on its own
            below.clear()
        elif RECIPE_FILE in files or (path / "adapter" / "adapter_config.json").is_file():
            below.clear()
            yield path
        else:
            below[:] = [name for name in below if not name.startswith(".")]


def _read(folder: Path) -> RunInfo:
    summary, record = _json(folder / "summary.json"), _json(folder / "adapter" / "mogu.json")
    manifest = _json(folder / "data" / "manifest.json")
    settings = _mapping(summary.get("settings"))
    made: dict[str, Any] = {**record, **{key: settings[key] for key in ("shift", "layers") if key in settings}}
    state = _state(folder)
    layers = made.get("layers")
    return RunInfo(
        folder=folder,
        model=summary.get("model") or record.get("model") or _mapping(manifest.get("inputs")).get("model"),
        recipe=_recipe_name(folder),
        state=state,
        changed=_changed(folder),
        refused=_refused(summary, "mogu"),
        base_refused=_refused(summary, "none"),
        shift=made.get("shift"),
        layers=tuple(layers) if isinstance(layers, list) else None,
    )


def _state(folder: Path) -> str:
    """How far a run is. A work folder belongs to a stage under way, also in a run that was finished once before."""
    stages = folder / "stages"
    for stage in _STAGES:
        if (work := stages / f"{stage}.work").is_dir() and _inputs(work) != _json(stages / f"{stage}.json").get(
            "inputs"
        ):
            return stage
    if (folder / "summary.json").is_file():
        return FINISHED
    built = (folder / "data").is_dir()
    if (folder / "adapter" / "adapter_config.json").is_file():
        return "evaluation" if built else TRAINED
    if not stages.is_dir():
        return "search" if (folder / "search").is_dir() else "data"
    return next((stage for stage in _STAGES if not (stages / f"{stage}.json").is_file()), "balance")


def _inputs(work: Path) -> str:
    """Hash of what a stage under way depends on; that of a finished stage is the same in its record."""
    try:
        return (work / "inputs").read_text(encoding="utf-8")
    except OSError:
        return ""


def _changed(folder: Path) -> float:
    """Newest change among the files that mark the progress of a run."""
    marks = [
        *(folder / name for name in (RECIPE_FILE, "summary.json", "training.jsonl", "adapter/adapter_config.json")),
        *folder.glob("stages/*.json"),
        *folder.glob("data/*.jsonl"),
        *folder.glob("search/*.log"),
        *folder.glob("search/stages/*.json"),
    ]
    return max((path.stat().st_mtime for path in marks if path.is_file()), default=0.0)


def _refused(summary: dict[str, Any], system: str) -> dict[str, float]:
    """Refusal rate of one system on each kind of prompts; a mean over suites, each weighed by its prompts."""
    found: dict[str, list[tuple[int, float]]] = {kind: [] for kind in KINDS}
    for suite in summary.get("suites") or []:
        measured = _mapping(_mapping(suite.get("systems")).get(system))
        rate = _mapping(_mapping(measured.get("rates")).get("refusal")).get("rate")
        if suite.get("kind") in KINDS and rate is not None and measured.get("n"):
            found[suite["kind"]].append((measured["n"], rate))
    return {kind: sum(n * rate for n, rate in own) / sum(n for n, _ in own) for kind, own in found.items() if own}


def _recipe_name(folder: Path) -> str | None:
    for path in (folder / RECIPE_FILE, folder / "adapter" / RECIPE_FILE):
        try:
            name = _mapping(yaml.safe_load(path.read_text(encoding="utf-8"))).get("name")
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        return None if name is None else str(name)
    return None


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none that can be read."""
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
