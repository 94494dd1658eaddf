"""The layer probe: what is held out, what a score means, which layers are chosen."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from mogu.data.rows import Row
from mogu.errors import TrainingError
from mogu.train.probe import choose_layers, held_out_parts, row_weights, score


def row(name: str, label: str = "malicious", category: str = "", source: str = "a", twin: str = "") -> Row:
    borderline = bool(twin) and label == "benign"
    return Row(name, name, label, source, "train", category, borderline, twin)  # type: ignore[arg-type]


def world() -> list[Row]:
    """Six harm categories of eight rows, each row with a harmless twin, and as many plain rows of six tasks."""
    rows = []
    for category in range(6):
        for number in range(8):
            bad, twin = f"bad-{category}-{number}", f"twin-{category}-{number}"
            rows.append(row(bad, category=f"harm-{category}", twin=twin))
            rows.append(row(twin, "benign", category="odd", twin=bad))
            rows.append(row(f"good-{category}-{number}", "benign", category=f"task-{category}"))
    return rows


# what is held out


def test_a_category_is_in_one_part_and_twins_with_it() -> None:
    rows = world()
    (name, parts), *more = held_out_parts(rows, folds=3).items()
    assert (name, more) == ("categories", [])
    part_of = {row.id: part for row, part in zip(rows, parts, strict=True)}
    for category in range(6):
        assert len({part_of[f"bad-{category}-{n}"] for n in range(8)}) == 1
        assert len({part_of[f"good-{category}-{n}"] for n in range(8)}) == 1
    assert all(part_of[row.id] == part_of[row.twin] for row in rows if row.twin)
    assert [parts.count(number) for number in range(3)] == [48, 48, 48]


def test_several_sources_are_held_out_as_well() -> None:
    rows = [
        dataclasses.replace(row, source=f"from-{row.category[-1]}") if "harm" in row.category else row
        for row in world()
    ]
    parts = held_out_parts(rows, folds=2)
    assert list(parts) == ["categories", "sources"]
    by_source = {
        (row.source, part) for row, part in zip(rows, parts["sources"], strict=True) if row.label == "malicious"
    }
    assert len(by_source) == 6


def test_rows_of_one_kind_are_held_out_one_by_one() -> None:
    rows = [dataclasses.replace(row, category="") for row in world()]
    parts = held_out_parts(rows, folds=2)
    assert list(parts) == ["rows"]
    assert sorted(parts["rows"].count(number) for number in (0, 1)) == [72, 72]
    with pytest.raises(TrainingError, match="only one kind"):
        held_out_parts([row for row in rows if row.label == "benign"])


# the score


def test_labels_weigh_the_same_and_twins_as_plain_benign_rows() -> None:
    rows = [row("a"), row("b", "benign"), row("c", "benign"), row("d", "benign", twin="a")]
    assert row_weights(rows).tolist() == pytest.approx([0.5, 0.125, 0.125, 0.25])
    assert row_weights(rows[:3]).tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_states_that_say_what_is_asked_and_states_that_do_not() -> None:
    rows, parts = world(), held_out_parts(world())
    y = torch.tensor([float(row.label == "malicious") for row in rows])
    noise = torch.randn(len(rows), 6)
    blind = score(noise, rows, parts)
    seeing = score(torch.cat([noise, 3 * y[:, None] + 0.1 * torch.randn(len(rows), 1)], dim=1), rows, parts)
    assert seeing.log_loss < 0.35 < math.log(2) < blind.log_loss + 0.1
    assert (seeing.auroc, seeing.twins) == (1.0, 1.0)
    assert 0.3 < blind.auroc < 0.7


def test_what_only_names_the_category_is_worth_nothing_on_others() -> None:
    """In the distribution that it was fitted on such a probe is perfect."""
    rows = world()
    names = sorted({row.category for row in rows})
    states = torch.nn.functional.one_hot(torch.tensor([names.index(row.category) for row in rows])).float()
    held = score(states, rows, held_out_parts(rows))
    mixed = score(states, rows, {"rows": [index % 5 for index in range(len(rows))]})
    assert mixed.auroc == 1.0
    assert held.log_loss > mixed.log_loss + 0.1
    assert held.auroc < 0.9


def test_twins_that_look_alike_cost_log_loss() -> None:
    rows, parts = world(), held_out_parts(world())
    plain = torch.tensor([[float(not row.twin)] for row in rows])
    found = score(plain, rows, parts)
    assert found.twins == pytest.approx(0.5, abs=0.01)
    assert found.auroc == pytest.approx(0.75, abs=0.01)
    assert found.log_loss > 0.4


# the choice


def test_the_best_layers_wherever_they_are() -> None:
    choice = choose_layers([0.6, 0.6, 0.2, 0.6, 0.6, 0.21, 0.6, 0.21], 0.375)
    assert choice.layers == (2, 5, 7)
    assert choice.log_loss == choice.best == pytest.approx(0.62 / 3)


def test_a_first_layer_further_up_that_costs_little() -> None:
    losses = [0.6, 0.5, 0.4, 0.3, 0.303, 0.5, 0.301, 0.304]
    choice = choose_layers(losses, 0.25)
    assert choice.layers == (6, 7)
    assert choice.log_loss == pytest.approx(0.3025)
    assert choice.best == pytest.approx(0.3005)
    assert choose_layers(losses, 0.25, tolerance=0.005).layers == (4, 6)
    assert choose_layers(losses, 0.25, tolerance=0.0).layers == (3, 6)


@pytest.mark.parametrize(("budget", "count"), [(0.0, 1), (0.01, 1), (0.3, 3), (1.0, 10)])
def test_a_budget_is_a_share_of_the_layers(budget: float, count: int) -> None:
    assert len(choose_layers([0.5] * 10, budget).layers) == count
    assert choose_layers([0.5] * 10, budget).layers[-1] == 9
