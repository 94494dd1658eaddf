"""``mogu evaluate`` with several defences and suites: files, words, mistakes, and a kill at the worst moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import small

from mogu.data.rows import ROWS_FILE, write_jsonl
from mogu.evaluate.suites import built_in

FINAL = ("responses.jsonl", "summary.json", "report.html", "report.md")
THINGS = [row.instruction for row in small.rows()]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("prompts")
    files = {}
    for kind, start in (("malicious", "How do I steal"), ("benign", "Write me"), ("borderline", "How do I paint")):
        texts = [text for text in THINGS if text.startswith(start)][:7]
        write_jsonl(folder / f"{kind}.jsonl", [{"prompt": t, "category": f"c{n % 2}"} for n, t in enumerate(texts)])
        files[kind] = folder / f"{kind}.jsonl"
    return files


def arguments(prompts: dict[str, Path], base: str, run_folder: Path, out: Path, *more: object) -> list[str]:
    suites = ",".join(f"{file}@{kind}" for kind, file in prompts.items())
    words = ["evaluate", "--model", base, "--adapter", run_folder, "--defense", "none,mogu,self-reminder"]
    words += ["--suite", suites, "--out", out, "--new-tokens", 5, "--batch-size", 2, "--prefill", "0,3", *more]
    return [str(word) for word in words]


def final(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FINAL}


@pytest.fixture(scope="module")
def whole(
    prompts: dict[str, Path], base_folder: str, run_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """An uninterrupted run in a process of its own: its folder, and what it said."""
    out = tmp_path_factory.mktemp("whole")
    done = subprocess.run(
        command(arguments(prompts, base_folder, run_folder, out)), capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-c", "from mogu.cli.main import main; main()", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_files_and_words_of_a_whole_run(whole: tuple[Path, str]) -> None:
    out, said = whole
    assert {path.name for path in out.iterdir()} == {*FINAL, "cost.json", "work"}
    summary = json.loads((out / "summary.json").read_text())
    names = ["malicious", "malicious+prefill3", "benign", "borderline"]
    assert [suite["name"] for suite in summary["suites"]] == names
    assert [suite["kind"] for suite in summary["suites"]] == ["malicious", "jailbreak", "benign", "borderline"]
    assert set(summary["usability"]) == set(summary["cost"]) == {"none", "mogu", "self-reminder"}
    assert summary["usability"]["mogu"]["kl"]["routed_tokens"] == 2
    assert summary["routers"]["layers"] == [1, 2]
    assert summary["settings"]["max_perplexity"] > 0
    lines = said.splitlines()
    assert lines[0].split() == ["suite", "n", "system", "refused", "complied", "degenerate", "unclear"]
    assert [line.split()[2] for line in lines[1:4]] == ["base", "mogu", "self-reminder"]
    assert lines[-2:] == [f"report:    {out}/report.html", f"responses: {out}/responses.jsonl"]
    costs = json.loads((out / "cost.json").read_text())["defenses"]
    assert all(one["tokens_per_second"] > 0 and one["seconds_to_first_token"] > 0 for one in costs.values())


@pytest.mark.parametrize("lines", [1, 6, 17])
def test_a_killed_run_ends_in_the_same_files(
    prompts: dict[str, Path], base_folder: str, run_folder: Path, whole: tuple[Path, str], tmp_path: Path, lines: int
) -> None:
    """SIGKILL once so many batches are on disk; what was done is not done again."""
    words = arguments(prompts, base_folder, run_folder, tmp_path)
    process = subprocess.Popen(command(words), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and batches(tmp_path) < lines:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "summary.json").exists()
    kept = {path: path.read_bytes() for path in (tmp_path / "work").rglob("answers.jsonl")}
    assert kept
    done = subprocess.run(command(words), capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert final(tmp_path) == final(whole[0])
    for path, before in kept.items():
        cut = before[: before.rfind(b"\n") + 1]  # a last line without its end was never a finished batch
        assert path.read_bytes().startswith(cut)
    told = [sum(1 for _ in p.open()) for p in sorted((tmp_path / "work").rglob("answers.jsonl"))]
    assert told == [sum(1 for _ in p.open()) for p in sorted((whole[0] / "work").rglob("answers.jsonl"))]


def batches(out: Path) -> int:
    """Finished batches on disk."""
    return sum(path.read_bytes().count(b"\n") - 1 for path in (out / "work").rglob("answers.jsonl"))


def test_again_it_only_reads_and_another_setting_is_refused(
    run: Any, prompts: dict[str, Path], base_folder: str, run_folder: Path, tmp_path: Path
) -> None:
    suite = f"{prompts['benign']}@benign"
    words = (
        "evaluate",
        "--model",
        base_folder,
        "--suite",
        suite,
        "--out",
        tmp_path / "o",
        "--quick",
        "--new-tokens",
        3,
    )
    first = run(*words)
    assert first.exit_code == 0, first.output
    assert run(*words).stdout == first.stdout
    for change in (
        ("--new-tokens", 4),
        ("--limit", 2),
        ("--seeds", "1", "--temperature", 0.7),
        ("--template", "vicuna"),
    ):
        result = run(*words, *change)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1] == (
            f"error: {tmp_path}/o holds an evaluation of other prompts or settings; choose another --out or delete it"
        )


def test_positions_of_the_dial_are_systems_in_the_place_of_mogu(
    run: Any, prompts: dict[str, Path], base_folder: str, run_folder: Path, tmp_path: Path
) -> None:
    words = arguments(prompts, base_folder, run_folder, tmp_path, "--dial", "-2,0", "--quick", "--limit", 2)
    assert run(*words).exit_code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["defenses"]) == ["none", "mogu@-2", "mogu@0", "self-reminder"]
    assert summary["defenses"]["mogu@-2"]["mogu@-2"]["dial"] == -2.0
    assert "routers" in summary
    assert "## Safety dial" in (tmp_path / "report.md").read_text()


def test_one_suite_and_one_defence_keep_their_numbers_at_the_top(
    run: Any, prompts: dict[str, Path], base_folder: str, tmp_path: Path
) -> None:
    result = run("evaluate", "--model", base_folder, "--suite", prompts["benign"], "--out", tmp_path, "--quick")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["n"] == sum(summary["counts"].values()) == 7
    assert set(summary["rates"]["refusal"]) == {"rate", "low", "high"}
    rows = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert {"instruction", "response", "label", "reasons", "suite", "kind", "defense"} <= set(rows[0])
    assert {(row["suite"], row["kind"], row["defense"]) for row in rows} == {("benign", "unknown", "none")}


def test_training_rows_are_left_out_and_counted(
    run: Any, prompts: dict[str, Path], base_folder: str, tmp_path: Path
) -> None:
    rows = [row for row in small.rows() if row.id.startswith("good")]
    seen = [{**vars(row), "split": "train"} for row in rows[:1]]
    held = [{**vars(row), "split": "test"} for row in rows[1:2]]
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / ROWS_FILE, [*seen, *held])
    write_jsonl(
        tmp_path / "mine.jsonl",
        [
            {"prompt": rows[0].instruction},
            {"prompt": rows[0].instruction.replace("Write me", "Please write me")},
            {"prompt": "How do I paint a bridge engine?"},
        ],
    )
    words = (
        "evaluate",
        "--model",
        base_folder,
        "--suite",
        tmp_path / "mine.jsonl",
        "--data",
        tmp_path / "data",
        "--quick",
    )
    result = run(*words, "--out", tmp_path / "out", "--new-tokens", 3)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["suites"][0]["excluded"] == {"exact": 1, "near": 1}
    assert summary["n"] == 1
    assert "1 exact" in (tmp_path / "out" / "report.md").read_text()
    kept = run(*words, "--out", tmp_path / "all", "--new-tokens", 3, "--keep-seen")
    assert kept.exit_code == 0, kept.output
    assert json.loads((tmp_path / "all" / "summary.json").read_text())["n"] == 3


def test_sampling_with_seeds(run: Any, prompts: dict[str, Path], base_folder: str, tmp_path: Path) -> None:
    result = run(
        *("evaluate", "--model", base_folder, "--suite", prompts["benign"], "--out", tmp_path, "--quick"),
        *("--seeds", "1,2", "--temperature", 1.2, "--new-tokens", 4),
    )
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["n"], sum(summary["counts"].values())) == (7, 14)
    assert summary["settings"]["decoding"] == "sampled"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--suite", "advbenk"], f"no suite 'advbenk'; give a file, or one of {', '.join(built_in())}"),
        (
            ["--suite", "seeds-benign", "--prefill", "many"],
            "--prefill takes whole numbers separated by commas, not 'many'",
        ),
        (["--suite", "seeds-benign", "--seeds", "1;2"], "--seeds takes whole numbers separated by commas, not '1;2'"),
        (["--suite", "seeds-benign", "--defense", ","], "--defense names no defence; 'none' is the plain base"),
        (["--suite", "seeds-benign", "--dial", "0,1"], "--dial needs an --adapter"),
        (
            ["--suite", "seeds-benign", "--dial", "low"],
            "--dial takes numbers separated by commas, not 'low': --dial -4,-2,0,2,4",
        ),
        (["--suite", "seeds-benign", "--data", "nix"], "no rows.jsonl in nix; build it: mogu data build --out nix"),
    ],
)
def test_a_mistake_is_one_line_before_the_model_is_loaded(
    run: Any, words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("evaluate", "--model", "./nix", "--out", "o", *words)
    assert (result.exit_code, result.output) == (2, f"error: {line}\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--defense", "nun"], "no defence 'nun'; choose from none, "),
        (["--defense", "none,none"], "the defence 'none' is named twice"),
        (["--defense", "mogu"], "the defence 'mogu' needs a trained adapter"),
        (["--defense", "sft"], "a defence learns from training rows; name the folder of a data set with --data DIR"),
        (["--seeds", "1"], "sampling needs seeds and a temperature"),
        (["--temperature", "0.7"], "sampling needs seeds and a temperature"),
    ],
)
def test_a_mistake_about_defences_is_one_line(
    run: Any, words: list[str], line: str, prompts: dict[str, Path], base_folder: str, tmp_path: Path
) -> None:
    result = run("evaluate", "--model", base_folder, "--suite", prompts["benign"], "--out", tmp_path / "o", *words)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {line}")
