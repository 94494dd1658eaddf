"""An adapter where others can get it: a repository on the hub, or a folder of the same files."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import httpx
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from mogu import __version__
from mogu.adapter import store
from mogu.data.rows import write_text
from mogu.errors import ConfigError, PublishError
from mogu.finetuned import LORA_FOLDER
from mogu.models import EMBEDDED
from mogu.recipe import RECIPE_FILE, Recipe, load_recipe
from mogu.train.card import HUB_ID, model_card, public_name

CONFIG, RECORD, CARD = "adapter_config.json", "mogu.json", "README.md"
FILES = (CONFIG, SAFETENSORS_WEIGHTS_NAME, RECORD, RECIPE_FILE, CARD)
"""What is published; responses and data stay where they are."""


def push(run: str | Path, to: str, *, base: str | None = None, private: bool = False) -> str:
    """Publish the adapter of a run with its recipe, its record and a model card that holds its figures.

    Local paths are not published: a base in a local folder goes by the last part of its path, unless ``base`` names it.

    Args:
        run: Run folder or adapter folder.
        to: ``OWNER/NAME`` on the hub; or a folder, which exists or begins with ``./``, ``../``, ``/`` or ``~``. It must
            be new, empty, or hold an earlier copy.
        base: What the base is called on the hub.
        private: Nobody else may see a repository that is made.

    Returns:
        Address of the repository, or the folder.

    Raises:
        AdapterError: ``run`` holds no whole adapter.
        ConfigError: ``to`` is neither, or a folder with other files in it.
        PublishError: The hub refuses or is out of reach, or the folder cannot be written.
    """
    source = store.adapter_folder(run)
    local = Path(to).expanduser().exists() or to.startswith((".", "/", "~"))
    if not local and not HUB_ID.fullmatch(to):
        raise ConfigError(f"--to takes OWNER/NAME, or a folder such as ./{to.strip('/')}; not {to!r}")
    if base is not None and not HUB_ID.fullmatch(base):
        raise ConfigError(f"--base takes OWNER/NAME, not {base!r}")
    target = Path(to).expanduser().resolve()
    if local:
        _check_target(target, source)
    try:
        if local:
            target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mogu-push.", dir=target.parent if local else None) as workshop:
            new = Path(workshop) / "new"
            _gather(source, new, base, None if local else to)
            if local:
                store.swap(new, target, Path(workshop) / "old")
                return str(target)
            return _upload(new, to, private)
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())[:200]
        raise PublishError(f"cannot write to {to}: {reason}") from error


def _check_target(target: Path, source: Path) -> None:
    if target == source.resolve():
        raise ConfigError(f"{target} is the adapter itself; give another folder with --to")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file; give a folder with --to")
    known = (*FILES, LORA_FOLDER)
    others = sorted(path.name for path in target.iterdir() if path.name not in known) if target.exists() else []
    if others:
        raise ConfigError(f"{target} holds other files ({others[0]}); give a new or an empty folder with --to")


def _gather(source: Path, new: Path, base: str | None, place: str | None) -> None:
    """Write what is published to the folder ``new``."""
    if not (source / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise store.missing(source, SAFETENSORS_WEIGHTS_NAME)
    config, record = _read(source / CONFIG), _read(source / RECORD)
    model = (
        base or record.get("model") or config.get("base_model") or config.get("base_model_name_or_path") or "unknown"
    )
    config |= {"base_model": _loadable(model), "base_model_name_or_path": public_name(model)}
    record = {**_without_paths(record), "model": _loadable(model)}
    recipe = load_recipe(source / RECIPE_FILE) if (source / RECIPE_FILE).is_file() else Recipe(name="unknown")
    summary = _read(source.parent / "summary.json")
    measured = "selection" in record and summary.get("selection") == record["selection"]  # and not an earlier adapter
    new.mkdir()
    shutil.copyfile(source / SAFETENSORS_WEIGHTS_NAME, new / SAFETENSORS_WEIGHTS_NAME)
    if (source / LORA_FOLDER).is_dir():
        shutil.copytree(source / LORA_FOLDER, new / LORA_FOLDER)
    write_text(new / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_text(new / RECORD, json.dumps(record, indent=1) + "\n")
    write_text(new / RECIPE_FILE, recipe.to_yaml())
    write_text(new / CARD, model_card(recipe, record, summary if measured else None, place=place))


def _loadable(model: str) -> str:
    """A name of the base that ``mogu`` finds again: its own, or what may be said of a path."""
    return model if model == EMBEDDED else public_name(model)


def _without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose imported files go by their names."""
    if "imported" in record:
        return {**record, "imported": [Path(path).name for path in record["imported"]]}
    return record


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise PublishError(f"cannot read {path}: {error}") from error
    return found if isinstance(found, dict) else {}


def _upload(folder: Path, repository: str, private: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi(library_name="mogu", library_version=__version__)
    try:
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="MoGU adapter")
    except (OSError, ValueError, httpx.HTTPError) as error:  # with which the hub's own errors begin
        reason = " ".join(str(error).split())[:240]
        raise PublishError(f"cannot push to {repository}: {reason}; log in with: hf auth login") from error
    return str(url)
