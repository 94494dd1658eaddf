"""Every command of docs/integrations.md runs, on a tiny model and a few prompts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner as ClickRunner
from typer.testing import CliRunner

pytest.importorskip("inspect_ai")
pytest.importorskip("lm_eval")

from inspect_ai._cli.main import inspect
from inspect_ai.log import list_eval_logs, read_eval_log

from mogu.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
LINES = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]


def lines(start: str) -> list[str]:
    return [line for line in LINES if line.startswith(start)]


def test_every_line_is_run_below() -> None:
    assert set(LINES) == {*lines("pip install 'mogu-llm["), *lines("inspect eval "), *lines("mogu lm-eval ")}
    assert len(lines("inspect eval ")) >= 4
    assert len(lines("mogu lm-eval ")) >= 2


def test_extras_exist() -> None:
    from importlib.metadata import metadata

    for line in lines("pip install"):
        assert re.search(r"\[(.*)\]", line)[1] in metadata("mogu-llm").get_all("Provides-Extra")


@pytest.mark.parametrize("line", lines("inspect eval "))
def test_inspect(line: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = [text for language, text in BLOCKS if language == "python"]
    (tmp_path / "my_task.py").write_text(code)
    words = shlex.split(line.replace("mogu/runs/demo", f"mogu/{run_folder}"))[1:]
    more = ["--display", "none", "--log-dir", "logs", "--limit", "2", "--max-tokens", "4", "-M", "device=cpu"]
    result = ClickRunner().invoke(inspect, [*words, *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (found,) = list_eval_logs("logs")
    log = read_eval_log(found)
    assert log.status == "success"
    assert log.eval.model == f"mogu/{run_folder}"
    assert log.results.completed_samples >= 1


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize("line", lines("mogu lm-eval "))
def test_lm_eval(line: str, run_folder: Path, base_folder: str, tasks: Path) -> None:
    line = line.replace("smollm2", base_folder).replace("runs/demo", str(run_folder))
    line = line.replace("--tasks arc_easy", f"--tasks tiny_choice --include_path {tasks}")
    result = CliRunner().invoke(app, shlex.split(line)[1:], prog_name="mogu")
    assert result.exit_code == 0, result.output
    assert "|tiny_choice|" in result.stdout
