"""``mogu harden --search``: what it prints and leaves, again with another pick, killed, and without optuna."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from safetensors.torch import load_file

from mogu.runs import find_runs

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def command(base_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command but for its run folder."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "tiny.yaml").write_text(small.RECIPE.to_yaml())
    sources = []
    for label in ("benign", "malicious"):
        fields = ("id", "instruction", "split", "borderline")
        rows = [{f: getattr(row, f) for f in fields} for row in small.rows() if row.label == label]
        (folder / f"{label}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        sources += [f"--{label}", str(folder / f"{label}.jsonl")]
    recipe = ["--recipe", str(folder / "tiny.yaml")]
    return ["harden", "--fast", base_folder, *recipe, *sources, "--device", "cpu", "--search", "2"]


def pareto(out: Path) -> dict[str, Any]:
    """Without seconds; KL rounded, because the batch size is measured and may differ from run to run."""
    found: dict[str, Any] = json.loads((out / "search" / "pareto.json").read_text())
    for trial in found["trials"]:
        del trial["seconds"]
    for one in [*found["members"], *(member for trial in found["trials"] for member in trial["members"])]:
        one["kl"] = round(one["kl"], 5)
    return found


def test_a_search_prints_its_trades_and_hardens_with_the_picked_one(run, command: list[str], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    out = tmp_path / "out"
    first = run(*command, "--out", out)
    assert first.exit_code == 0, first.output
    found = json.loads((out / "search" / "pareto.json").read_text())
    table = first.stdout.split("\n\n")[0].splitlines()
    assert "malicious complied" in table[0]
    assert "changed in the recipe" in table[0]
    assert [line.split()[0] for line in table[1:]] == ["base", *map(str, range(1, len(found["members"]) + 1))]
    assert [line.split()[0] for line in table if "picked" in line] == [str(found["picked"])]
    assert "trial 2 of 2: " in first.stderr
    summary = json.loads((out / "summary.json").read_text())
    member = found["members"][found["picked"] - 1]
    assert summary["search"] == found
    assert summary["settings"]["shift"] == member["shift"]
    assert summary["recipe"] == "tiny, searched"
    assert summary["seconds"]["search"] > 0
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "What the search found on validation data" in report
    assert [one.state for one in find_runs(out)] == ["finished"]

    last = str(len(found["members"]))
    again = run(*command, "--out", out, "--pick", last)
    assert again.exit_code == 0, again.output
    assert "trial" not in again.stderr
    assert json.loads((out / "search" / "pareto.json").read_text())["picked"] == int(last)
    shift = json.loads((out / "adapter" / "mogu.json").read_text())["shift"]
    assert shift == found["members"][-1]["shift"]


def test_a_pick_without_a_search_or_of_no_such_rule_costs_nothing(run, command: list[str], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    result = run("harden", "nix", "--out", tmp_path / "out", "--pick", "safest")
    assert (result.exit_code, result.output) == (
        2,
        "error: --pick takes one of a search's trades; give --search N with it\n",
    )
    result = run("harden", "nix", "--out", tmp_path / "out", "--search", 2, "--pick", "best")
    assert (result.exit_code, result.output) == (
        2,
        "error: --pick best: give the number of a member of the Pareto set, "
        "or one of balance, safest, mildest, nearest\n",
    )
    assert not (tmp_path / "out").exists()


def test_without_optuna_one_line_says_what_to_install(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "optuna" else real(name, *more)
    )
    result = run("harden", "nix", "--out", tmp_path / "out", "--search", 2)
    assert (result.exit_code, result.output) == (
        2,
        "error: optuna is not installed; run: pip install 'mogu-llm[search]'\n",
    )


@pytest.mark.slow
def test_a_killed_search_ends_in_the_same_set_and_adapter(command: list[str], tmp_path: Path) -> None:
    """SIGKILL at points all over the run; every second one comes while a file is being written."""
    pytest.importorskip("optuna")
    shares = (0.2, 0.45, 0.6, 0.75)
    outs = [tmp_path / "whole", *(tmp_path / str(share) for share in shares)]

    def life(out: Path, die: Any = None, half: bool = False) -> dict[str, Any]:
        return {"arguments": [*command, "--out", str(out)], "out": str(out), "die": die, "half": half}

    plan = [life(outs[0])]
    for index, (share, out) in enumerate(zip(shares, outs[1:], strict=True)):
        plan += [life(out, [0, share], half=index % 2 == 1), life(out)]
    done = subprocess.run(
        [sys.executable, str(TESTS / "train" / "lives.py")],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")]),
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    assert done.returncode == 0, done.stderr
    ends = [end["status"] for end in json.loads(done.stdout)]
    assert ends == [0, *[signal.SIGKILL, 0] * len(shares)], done.stderr
    whole, *others = ((pareto(out), load_file(out / "adapter" / "adapter_model.safetensors")) for out in outs)
    for found, tensors in others:
        assert found == whole[0]
        assert tensors.keys() == whole[1].keys()
        assert [name for name in tensors if not torch.equal(tensors[name], whole[1][name])] == []
