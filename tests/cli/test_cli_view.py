"""What is drawn while and after a job."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mogu.cli import view
from mogu.cli.options import run_folder


def test_log_has_a_line_for_begin_and_one_for_end(capsys) -> None:
    with view.progress_view() as progress:
        progress.begin("data", "data: the model answers")
        progress.update(1, 2)
        progress.end("2 rows")
        progress.begin("model", "model: loads it")
        progress.end("")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.sub(r"\d+ s", "N s", err) == (
        "data: the model answers\ndata: 2 rows (N s)\nmodel: loads it\nmodel: done (N s)\n"
    )


def test_live_view_ends_in_a_line_for_each_step(capsys) -> None:
    with view.LiveView() as progress:
        progress.begin("data", "data: the [model] answers")
        progress.update(1, 2)
        progress.update(2, 2)
        progress.end("2 rows")
    assert re.sub(r"\d+ s", "N s", capsys.readouterr().err).endswith("✓ data: the [model] answers: 2 rows (N s)\n")


@pytest.mark.parametrize(
    ("first", "now", "total", "seconds"),
    [
        ((0, 0.0), (10, 5.0), 30, 10.0),
        ((500, 0.0), (510, 5.0), 530, 10.0),  # a run that goes on counts its own pace only
        ((3, 1.0), (3, 4.0), 9, None),
        ((0, 2.0), (4, 2.0), 9, None),
    ],
)
def test_time_left_is_at_the_pace_so_far(first, now, total, seconds) -> None:
    assert view.time_left(first, now, total) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3700, "1 h 01 min"), (59.7, "1 min 00 s")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert view._duration(seconds) == text


def test_tables_are_aligned_columns_in_a_pipe(capsys) -> None:
    view.print_table([["suite", "n"], ["a", "10"], ["longer", "2"]])
    assert capsys.readouterr().out == "suite   n\na       10\nlonger  2\n"


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("smollm2", "runs/smollm2"),
        ("org/Name-1B", "runs/Name-1B"),
        ("/models/mine/", "runs/mine"),
        ("a/b.Q4.gguf", "runs/b.Q4"),
        (".", "runs/model"),
    ],
)
def test_a_run_is_named_after_its_model(model: str, folder: str) -> None:
    assert run_folder(model) == Path(folder)
