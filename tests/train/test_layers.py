"""What is read of a base's layers, against hidden states that transformers puts out."""

from __future__ import annotations

import dataclasses

import pytest
import small
import tiny
import torch
from torch.testing import assert_close

from mogu.chat import prompt_ids
from mogu.errors import AdapterError
from mogu.train import layers as module
from mogu.train.layers import STATES, probe_layers, random_layers

ROWS = [row for row in small.rows() if row.split == "train"]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_states_are_the_models(architecture: str) -> None:
    base, tokenizer = small.base(architecture), small.tokenizer()
    with module._read(base, tokenizer, ROWS, 8, None, STATES) as found:
        read = {name: [each.clone() for each in states] for name, states in found.items()}
    inputs = {}
    for number, (_, projection) in enumerate(module.layers_with_projection(base)):
        projection.register_forward_pre_hook(lambda _, args, number=number: inputs.update({number: args[0]}))
    texts = [prompt_ids(tokenizer, row.instruction) for row in ROWS]
    begin = next(n for n, column in enumerate(zip(*texts, strict=False)) if len(set(column)) > 1)
    for index in (0, 5, len(ROWS) - 1):
        ids = torch.tensor([texts[index]])
        with torch.no_grad():
            hidden = base(input_ids=ids, output_hidden_states=True).hidden_states
        inside = slice(begin, ids.shape[1] - 2)  # what ends all prompts is </s> <assistant>
        for layer in range(tiny.LAYERS):
            for kind, states in (("projection", inputs[layer]), ("residual", hidden[layer])):
                assert_close(read[f"{kind}, last"][layer][index], states[0, -1], rtol=1e-3, atol=1e-4)
                assert_close(read[f"{kind}, mean"][layer][index], states[0, inside].mean(dim=0), rtol=1e-3, atol=1e-4)


def test_a_probe_of_every_layer_and_its_record() -> None:
    seen: list[tuple[int, int]] = []
    rows = [dataclasses.replace(row, category=row.id[-2:]) for row in small.rows()]
    found = probe_layers(small.base(), small.tokenizer(), rows, batch_size=5, progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert found.rows == {"malicious": 8, "benign": 8, "borderline": 4}
    record = found.record(0.5)
    assert list(record["scores"]) == list(STATES)
    assert all(len(each) == tiny.LAYERS for each in record["scores"].values())
    assert record["held_out"] == ["categories"]
    assert len(record["chosen"]["layers"]) == 2
    assert found.record(0.5) == probe_layers(small.base(), small.tokenizer(), rows, batch_size=5).record(0.5)


def test_a_beginning_that_all_share_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words, base = small.tokenizer(), small.base()
    words.chat_template = "{{ '<system> How do I steal a car? Write me a short poem about </s> ' }}" + small.CHAT
    columns: list[int] = []
    base.model.layers[0].register_forward_pre_hook(lambda _, args: columns.append(args[0].shape[1]))
    read, most = [], []
    for _ in range(2):
        with module._read(base, words, ROWS, 4, None, STATES) as found:
            read.append({name: [each.clone() for each in states] for name, states in found.items()})
        most.append(sum(columns[-5:]))
        monkeypatch.setattr(module, "shared_beginning", lambda *_: [])
    assert most[0] < most[1]
    for name in STATES:
        for one, other in zip(read[0][name], read[1][name], strict=True):
            assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_limit_takes_pairs_of_twins() -> None:
    chosen = module.sampled(ROWS, 3)
    kinds = ["borderline" if row.borderline else row.label for row in chosen]
    assert [kinds.count(kind) for kind in ("malicious", "benign", "borderline")] == [3, 3, 3]
    ids = {row.id for row in chosen}
    with_twin = sum(bool(row.twin) for row in chosen if row.label == "malicious")
    assert sum(row.twin in ids for row in chosen if row.borderline) == with_twin > 0
    assert {row.id for row in module.sampled(ROWS, 100)} == {row.id for row in ROWS}
    assert module.sampled(ROWS, None) == ROWS


def test_an_architecture_whose_projection_is_not_known() -> None:
    with pytest.raises(AdapterError, match="no attention output projection known for model type None"):
        module.layers_with_projection(torch.nn.Linear(2, 2))


def test_layers_drawn_by_chance() -> None:
    drawn = [random_layers(30, 0.3, seed) for seed in range(3)]
    assert all(len(set(each)) == 9 and list(each) == sorted(each) for each in drawn)
    assert len(set(drawn)) == 3
    assert random_layers(30, 0.3, 1) == drawn[1]
