"""One line for every mistake, on stderr, with its exit status."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from mogu.cli import recipes
from mogu.cli.errors import explain
from mogu.errors import DataError, MissingExtraError
from mogu.recipe import recipe_names

KNOWN = ", ".join(recipe_names())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["recipes", "show", "nix"], f"no recipe 'nix'; choose from {KNOWN} or give a YAML file"),
        (["harden", "smollm2", "--recipe", "nix"], f"no recipe 'nix'; choose from {KNOWN} or give a YAML file"),
        (["hardn", "smollm2"], "No such command 'hardn'. Did you mean 'harden'? (see mogu --help)"),
        (["harden"], "Missing argument 'MODEL'. (see mogu harden --help)"),
        (["chat"], "Missing option '--adapter'. (see mogu chat --help)"),
        (["chat", "--zzz"], "No such option: --zzz (see mogu chat --help)"),
        (["generate", " "], 'no prompt; give one: mogu generate "…", or --file FILE, or text on stdin'),
        (["generate", "a", "--file", "b.txt"], "give a prompt or --file, not both"),
        (["generate", "--file", "nix.txt"], "no file nix.txt; give a .jsonl, .csv or .txt file, or 'seeds'"),
        (["generate", "a"], "name a model with --model, or an adapter with --adapter"),
        (
            ["evaluate", "--suite", "nix.jsonl", "--out", "o"],
            "no file nix.jsonl; give a .jsonl, .csv or .txt file, or 'seeds'",
        ),
        (["evaluate", "--suite", ",", "--out", "o"], "--suite names no file"),
        (
            ["generate", "a", "--adapter", "nix"],
            "no adapter in nix: adapter_config.json is missing (is the run finished?)",
        ),
        (["generate", "a", "--model", "./nix"], "no model folder at ./nix"),
        (
            ["train", "--model", "smollm2", "--data", "nix", "--out", "o"],
            "no rows.jsonl in nix; build it: mogu data build --out nix",
        ),
        (
            ["import", "--glad", "g", "--unwill", "u", "--router", "r.pth", "--base", "./b", "--out", "o"],
            "no model folder at ./b",
        ),
    ],
)
def test_a_mistake_is_one_line(run, arguments: list[str], line: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"error: {line}"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["harden", "smollm2"],
        ["demo"],
        ["train", "--model", "smollm2", "--data", "d"],
        ["data", "build", "--model", "smollm2"],
    ],
)
def test_an_unusable_folder_is_found_before_the_work(run, command: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run(*command, "--out", tmp_path / "file" / "run")
    assert result.exit_code == 2
    assert result.output == f"error: cannot write to {tmp_path}/file/run: Not a directory; choose another --out\n"


def _failing(monkeypatch, error: BaseException) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(recipes, "load_recipe", fail)


def test_a_full_disk_is_one_line(run, monkeypatch) -> None:
    _failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "runs/a"))
    result = run("recipes", "show", "default")
    assert (result.exit_code, result.output) == (2, "error: No space left on device: runs/a\n")


def test_our_own_fault_asks_for_a_report(run, monkeypatch) -> None:
    _failing(monkeypatch, KeyError("gone"))
    result = run("recipes", "show", "default")
    assert result.exit_code == 1
    assert result.output == "error: KeyError: 'gone' (a fault in mogu: please report it; MOGU_DEBUG=1 shows where)\n"


def test_debugging_shows_the_trace(run, monkeypatch) -> None:
    monkeypatch.setenv("MOGU_DEBUG", "1")
    _failing(monkeypatch, KeyError("gone"))
    assert isinstance(run("recipes", "show", "default").exception, KeyError)


def test_ctrl_c_is_one_line(run, monkeypatch) -> None:
    _failing(monkeypatch, KeyboardInterrupt())
    result = run("recipes", "show", "default")
    assert (result.exit_code, result.output) == (130, "interrupted\n")


def test_ctrl_c_in_a_long_job_says_how_to_go_on(run, monkeypatch, tmp_path: Path) -> None:
    import mogu.recipe

    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mogu.recipe, "load_recipe", interrupt)
    result = run("harden", "smollm2", "--out", tmp_path)
    assert (result.exit_code, result.output) == (130, "interrupted; run the same command again to go on\n")


def test_a_closed_pipe_ends_quietly() -> None:
    script = "import sys; from mogu.cli.main import main; sys.argv = ['mogu', 'recipes', 'show', 'default']; main()"
    command = f'"{sys.executable}" -c "{script}" | head -n 1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("name: default\n", "")


def test_errors_of_libraries_are_explained() -> None:
    import jinja2
    import safetensors
    import torch

    assert explain(DataError("a.jsonl:3: not JSON\nat all")) == "a.jsonl:3: not JSON at all"
    assert (
        explain(MissingExtraError("gguf", "embedded")) == "gguf is not installed; run: pip install 'mogu-llm[embedded]'"
    )
    assert explain(PermissionError(errno.EACCES, "Permission denied", "/x")) == "Permission denied: /x"
    assert explain(torch.OutOfMemoryError("CUDA")) == (
        "out of memory; take a smaller --batch-size, --dtype bfloat16 or --quantize 4bit"
    )
    assert explain(safetensors.SafetensorError("I/O error")) == (
        "cannot write or read a file of weights: I/O error; is the disk full?"
    )
    assert explain(jinja2.TemplateError("System role not supported")) == (
        "the model's chat template takes no such conversation: System role not supported"
    )
    assert explain(ValueError("ours")) is None
