"""A command line in this process, and a tiny model with an adapter on disk for it to use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mogu.cli.main import app

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run ``mogu`` with these arguments; the result has exit_code, stdout and stderr."""

    def invoke(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, prog_name="mogu")

    return invoke


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
