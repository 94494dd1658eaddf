"""``mogu lm-eval``: lm-eval's command line on a small task of files, and what a user is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

pytest.importorskip("lm_eval")

import mogu
from mogu.adapter.model import plain_base
from mogu.cli.main import app

pytestmark = pytest.mark.usefixtures("harness")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["lm-eval", *map(str, arguments)], prog_name="mogu")


def measured(out: Path) -> dict[str, Any]:
    (file,) = out.rglob("results_*.json")
    return json.loads(file.read_text())


def accuracy(model: Any, tokenizer: Any, rows: list[dict], routed: int) -> float:
    """Share of questions whose right choice is the most likely one, from two forwards for each choice."""

    def score(question: str, choice: str) -> float:
        context, answer = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (question, choice))
        tokens, places = torch.tensor([context + answer]), range(len(context) - 1, len(context) + len(answer) - 1)
        with torch.no_grad():
            head = model(tokens).logits[0].log_softmax(-1)
            with plain_base(model):
                tail = model(tokens).logits[0].log_softmax(-1)
        parts = [(head if k < routed else tail)[place, answer[k]] for k, place in enumerate(places)]
        return float(sum(parts))

    def right(row: dict) -> bool:
        scores = [score(row["question"], choice) for choice in row["choices"]]
        return scores.index(max(scores)) == row["answer"]

    return sum(map(right, rows)) / len(rows)


def test_a_task_is_measured_with_routing_on_and_off(
    base_folder: str, run_folder: Path, tasks: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (tasks / "tiny.jsonl").read_text().splitlines()]
    model, tokenizer = mogu.load(base_folder, run_folder, device="cpu")
    for name, more, routed in (("on", "", 2), ("off", ",plain=true", 0)):
        out = tmp_path / name
        result = run(
            *("--model", "mogu", "--model_args", f"pretrained={base_folder},adapter={run_folder}{more}"),
            *("--tasks", "tiny_choice,tiny_answer", "--include_path", tasks, "--batch_size", 2, "--output_path", out),
        )
        assert result.exit_code == 0, result.output
        found = measured(out)
        assert found["results"]["tiny_choice"]["acc,none"] == pytest.approx(accuracy(model, tokenizer, rows, routed))
        assert found["config"]["mogu_routed_tokens"] == routed
        assert "tiny_answer" in result.stdout


def test_the_command_line_is_lm_evals_own(tasks: Path) -> None:
    before = list(sys.argv)
    result = run("validate", "--tasks", "tiny_choice", "--include_path", tasks)
    assert result.exit_code == 0, result.output
    assert "tiny_choice" in result.stdout
    assert sys.argv == before


def test_an_unknown_task_is_one_line() -> None:
    result = run("--model", "mogu", "--model_args", "pretrained=/no/such", "--tasks", "nix")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("error: lm-eval: Tasks not found: nix")


def test_a_missing_adapter_is_one_line(tasks: Path) -> None:
    result = run(
        "--model", "mogu", "--model_args", "adapter=no-such-run", "--tasks", "tiny_choice", "--include_path", tasks
    )
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "error: no adapter in no-such-run: adapter_config.json is missing (is the run finished?)"
    )
