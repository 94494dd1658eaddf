"""The dial's curve in the report."""

from __future__ import annotations

import copy
from typing import Any

import fake

from mogu.evaluate.dial import dial_section, dial_table
from mogu.evaluate.report import markdown_report, render


def dialled() -> dict[str, Any]:
    """A summary whose one system stands at three positions, out of order."""
    found = fake.summary()
    found["defenses"] = {"none": {"none": {}}}
    for value, counts in ((2.0, (64, 0, 0, 0)), (-2.0, (16, 0, 48, 0)), (0.0, (32, 0, 32, 0))):
        name = f"mogu@{value:g}"
        found["defenses"][name] = {name: {"adapter": "x", "dial": value}}
        for suite in found["suites"]:
            suite["systems"][name] = fake.system(counts)
    return found


def test_a_row_for_each_position_in_order() -> None:
    table = dial_table(dialled())
    assert table is not None
    assert table.header == ["dial", "malicious answered (ASR)", "benign refused", "borderline refused"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["−2", "75%", "25%", "25%"],
        ["0", "50%", "50%", "50%"],
        ["2", "0%", "100%", "100%"],
    ]


def test_it_is_drawn_on_the_page_and_in_the_markdown() -> None:
    assert "Safety dial" in render(dialled())
    assert "## Safety dial" in markdown_report(dialled())
    section = dial_section(dialled())
    assert section is not None
    assert len(section.findall(".//polyline")) >= 3


def test_one_position_or_none_draws_nothing() -> None:
    one = copy.deepcopy(dialled())
    for suite in one["suites"]:
        del suite["systems"]["mogu@2"], suite["systems"]["mogu@-2"]
    assert dial_table(one) is None
    assert dial_section(fake.summary()) is None
    assert "Safety dial" not in render(fake.summary())


def test_suites_of_no_known_kind_draw_nothing() -> None:
    unknown = dialled()
    for suite in unknown["suites"]:
        suite["kind"] = "unknown"
    assert dial_table(unknown) is None
    assert "Safety dial" not in render(unknown)
