"""A tiny model with an adapter on disk; no network, no caches outside of the test's folders."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="mogu-datasets-")  # read when datasets is imported

TASKS = Path(__file__).parent / "tasks"


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved random llama with a word tokenizer."""
    import small

    return small.save_base(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="session")
def run_folder(base_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a strong random adapter for that model, two routed tokens."""
    import small
    import tiny

    from mogu.adapter import store

    folder = tmp_path_factory.mktemp("run")
    model = tiny.adapted(small.base(), base_model=base_folder, routed_tokens=2, layers_to_transform=[1, 2])
    store.save(model, folder / "adapter")
    return folder


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of small lm-eval tasks, as working directory: they name their data relative to it."""
    monkeypatch.chdir(TASKS)
    return TASKS


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """lm-eval's command line without its report on the machine, which takes seconds, and without its log handler."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setattr("lm_eval.utils._LOGGING_CONFIGURED", False)
    logger = logging.getLogger("lm_eval")
    before = list(logger.handlers)
    yield
    logger.handlers[:] = before  # its own writes to the stderr of this test
