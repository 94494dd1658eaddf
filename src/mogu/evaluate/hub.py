"""Rows of a public data set on the Hugging Face hub: through ``datasets`` if installed, else file by file."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mogu.data.sources import read_prompts
from mogu.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from mogu.evaluate.suites import Suite


def read_hub(suite: Suite) -> list[dict[str, Any]]:
    """Records of ``suite``, each with an ``instruction``.

    Raises:
        DataError: The hub is out of reach, or the set is not there or asks for a log-in.
        MissingExtraError: The set is Parquet and neither ``datasets`` nor pyarrow is installed.
    """
    repository = suite.source.removeprefix("hub:")
    try:
        if importlib.util.find_spec("datasets") is not None:
            records = _through_datasets(suite, repository)
        else:
            records = [record for name in suite.files for record in _read(_download(repository, name))]
    except (DataError, MissingExtraError):
        raise
    except Exception as error:  # requests, the hub's own errors, those of datasets: all mean that it cannot be had
        said = " ".join(str(error).split())[:120]
        raise DataError(
            f"cannot read suite {suite.name} from the hub ({repository}): {said or type(error).__name__}; "
            f"with a file of it: --suite {suite.name}=FILE"
        ) from error
    if not records:
        raise DataError(f"suite {suite.name}: its definition names no files of {repository}; install datasets")
    field = suite.field or "instruction"
    if field not in records[0]:
        raise DataError(f"suite {suite.name}: {repository} has no field {field!r} (has {', '.join(records[0])})")
    return [{**record, "instruction": str(record[field]).strip()} for record in records if record.get(field)]


def _through_datasets(suite: Suite, repository: str) -> list[dict[str, Any]]:
    datasets: Any = importlib.import_module("datasets")
    return [dict(record) for record in datasets.load_dataset(repository, suite.config, split=suite.split or "test")]


def _download(repository: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name, repo_type="dataset"))


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        if importlib.util.find_spec("pyarrow") is None:
            raise MissingExtraError("pyarrow, which reads Parquet files,", "parquet")
        parquet: Any = importlib.import_module("pyarrow.parquet")
        return list(parquet.read_table(path).to_pylist())
    if path.suffix == ".json" and (text := path.read_text(encoding="utf-8")).lstrip().startswith("["):
        return list(json.loads(text))
    return read_prompts(str(path))
