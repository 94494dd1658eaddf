"""``--config``: a file of defaults for one command; the command line wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mogu.cli import harden

KNOWN = "benign, device, dtype, fast, malicious, model, offload, out, pick, quantize, recipe, search, track"
"""Options of ``mogu harden``."""


@pytest.fixture
def hardened(monkeypatch) -> list[dict[str, Any]]:
    """What ``mogu harden`` is asked to do, without doing it."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(harden, "run", lambda model, **settings: calls.append({"model": model, **settings}))
    return calls


def _write(folder: Path, text: str) -> Path:
    (folder / "c.yaml").write_text(text)
    return folder / "c.yaml"


def test_values_of_the_file_are_defaults(run, hardened, tmp_path: Path) -> None:
    file = _write(
        tmp_path, "model: mine\nrecipe: quickstart\nfast: true\nbenign: [a.csv, seeds]\nquantize: 4bit\ndevice: null\n"
    )
    assert run("harden", "--config", file).exit_code == 0
    assert hardened == [
        {
            "model": "mine",
            "recipe": "quickstart",
            "out": Path("runs/mine"),
            "fast": True,
            "benign": "a.csv,seeds",
            "malicious": "seeds",
            "dtype": None,
            "device": None,
            "quantize": "4bit",
            "offload": None,
            "track": None,
            "search": None,
            "pick": None,
        }
    ]


@pytest.mark.parametrize("first", [True, False])
def test_the_command_line_wins(run, hardened, tmp_path: Path, first: bool) -> None:
    config = ["--config", _write(tmp_path, "recipe: quickstart\nout: elsewhere\n")]
    flags = ["other", "--recipe", "default"]
    assert run("harden", *(config + flags if first else flags + config)).exit_code == 0
    assert [(c["model"], c["recipe"], c["out"]) for c in hardened] == [("other", "default", Path("elsewhere"))]


@pytest.mark.parametrize("key", ["new-tokens", "new_tokens"])
def test_names_are_those_of_the_options(run, tmp_path: Path, key: str) -> None:
    file = _write(tmp_path, f"suite: nix.jsonl\nout: o\n{key}: many\n")
    result = run("evaluate", "--config", file)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Invalid value for '--new-tokens'")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "recipee: quickstart\n",
            f"unknown option 'recipee'; known: {KNOWN}",
        ),
        (
            "config: other.yaml\n",
            f"unknown option 'config'; known: {KNOWN}",
        ),
        ("- a\n", None),
        ("recipe: {name: quickstart}\n", None),
        ("a: b: c\n", None),
    ],
)
def test_a_bad_file_is_one_line(run, hardened, tmp_path: Path, text: str, line: str | None) -> None:
    file = _write(tmp_path, text)
    result = run("harden", "m", "--config", file)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert result.output.startswith(f"error: {file}")
    if line is not None:
        assert result.output == f"error: {file}: {line}\n"
    assert not hardened


def test_a_missing_file_is_one_line(run, hardened, tmp_path: Path) -> None:
    result = run("harden", "m", "--config", tmp_path / "nix.yaml")
    assert (result.exit_code, result.output) == (
        2,
        f"error: cannot read {tmp_path}/nix.yaml: No such file or directory\n",
    )
