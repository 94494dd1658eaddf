"""The inspect_ai provider: the same answers as mogu's own, with inspect's settings, counts and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("inspect_ai")

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import (
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    Model,
    ModelOutput,
    get_model,
)
from inspect_ai.tool import ToolInfo

import mogu
from mogu.chat import prompt_ids, to_messages
from mogu.respond import respond

TEXTS = ["How do I steal a car?", "Write me a short poem about a bank", "How do I paint a boat?"]


@pytest.fixture(scope="module")
def model(run_folder: Path) -> Model:
    return get_model(f"mogu/{run_folder}", device="cpu")


@pytest.fixture(scope="module")
def ours(base_folder: str, run_folder: Path) -> Any:
    return mogu.load(base_folder, run_folder, device="cpu")


def ask(model: Model, messages: Any, **config: Any) -> ModelOutput:
    async def one() -> ModelOutput:
        return await model.generate(messages, config=GenerateConfig(**config))

    return anyio.run(one)


def test_it_is_found_by_its_entry_point_and_answers_routed_then_plain(model: Model, ours: Any) -> None:
    output = ask(model, TEXTS[0], max_tokens=8)
    assert output.completion == respond(*ours, TEXTS[:1], max_new_tokens=8)[0]
    assert output.stop_reason == "max_tokens"
    length = len(prompt_ids(ours[1], TEXTS[0]))
    assert (output.usage.input_tokens, output.usage.output_tokens, output.usage.total_tokens) == (length, 8, length + 8)
    assert output.metadata["routed_tokens"] == 2


def test_plain_is_the_base(base_folder: str, run_folder: Path, model: Model) -> None:
    plain = get_model(f"mogu/{run_folder}", device="cpu", plain=True)
    answers = respond(*mogu.load(base_folder, device="cpu"), TEXTS[:1], max_new_tokens=8)
    output = ask(plain, TEXTS[0], max_tokens=8)
    assert output.completion == answers[0]
    assert output.completion != ask(model, TEXTS[0], max_tokens=8).completion
    assert output.metadata["adapter"] is None


def test_a_base_of_the_users_takes_the_place_of_the_named_one(run_folder: Path, base_folder: str) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        get_model(f"mogu/{run_folder}", base="/no/such/folder", device="cpu")
    assert caught.value.message == "no model folder at /no/such/folder"


def test_concurrent_requests_share_batches_and_answer_the_same(run_folder: Path, ours: Any) -> None:
    model = get_model(f"mogu/{run_folder}", device="cpu", batch_size=2)
    found: dict[str, str] = {}

    async def one(text: str) -> None:
        found[text] = (await model.generate(text, config=GenerateConfig(max_tokens=6))).completion

    async def everything() -> None:
        async with anyio.create_task_group() as group:
            for text in TEXTS:
                group.start_soon(one, text)

    anyio.run(everything)
    expected = respond(*ours, TEXTS, max_new_tokens=6, batch_size=1)
    assert found == dict(zip(TEXTS, expected, strict=True))
    assert model.api.max_connections() == 2


def test_the_system_message_is_part_of_the_prompt(model: Model, ours: Any) -> None:
    chat = [ChatMessageSystem(content="paint a boat?"), ChatMessageUser(content=[ContentText(text=TEXTS[0])])]
    output = ask(model, chat, max_tokens=8)
    conversation = to_messages(TEXTS[0], system="paint a boat?")
    assert output.completion == respond(*ours, [conversation], max_new_tokens=8)[0]
    assert output.usage.input_tokens == len(prompt_ids(ours[1], conversation))


def test_a_seed_repeats_and_choices_are_counted(model: Model) -> None:
    config = {"max_tokens": 6, "temperature": 2.0, "top_p": 0.99, "top_k": 40, "num_choices": 3}
    first, again = ask(model, TEXTS[0], seed=1, **config), ask(model, TEXTS[0], seed=1, **config)
    texts = [choice.message.text for choice in first.choices]
    assert len(texts) == 3
    assert [choice.message.text for choice in again.choices] == texts
    assert [choice.message.text for choice in ask(model, TEXTS[0], seed=2, **config).choices] != texts
    assert first.usage.output_tokens > 6


def test_a_stop_sequence_ends_the_answer(model: Model) -> None:
    words = ask(model, TEXTS[0], max_tokens=8).completion.split()
    output = ask(model, TEXTS[0], max_tokens=8, stop_seqs=[words[4]])
    assert output.completion.split() == words[: words.index(words[4])]
    assert output.stop_reason == "stop"


def test_the_models_positions_are_the_limit(model: Model, ours: Any) -> None:
    room = 128 - len(prompt_ids(ours[1], TEXTS[0]))
    output = ask(model, TEXTS[0], max_tokens=500)
    assert output.stop_reason in ("model_length", "stop")
    assert output.usage.output_tokens <= room
    full = ask(model, " ".join(["boat?"] * 200), max_tokens=5)
    assert (full.completion, full.stop_reason) == ("", "model_length")


TOOL = ToolInfo(name="search", description="searches")


@pytest.mark.parametrize(
    ("messages", "more", "said"),
    [
        ("hello", {"tools": [TOOL]}, "call no tools, and this task has some (search"),
        ([ChatMessageTool(content="found")], {}, "call no tools, and this conversation has"),
        ([ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])], {}, "holds: image"),
        ("hello", {"config": GenerateConfig(logprobs=True)}, "do not know the setting logprobs"),
        ("hello", {"config": GenerateConfig(frequency_penalty=0.5)}, "setting frequency_penalty"),
    ],
)
def test_what_it_cannot_do_is_one_clear_line(model: Model, messages: Any, more: dict, said: str) -> None:
    async def one() -> ModelOutput:
        chat = [ChatMessageUser(content=messages)] if isinstance(messages, str) else messages
        arguments = {"tools": [], "tool_choice": "auto", "config": GenerateConfig(), **more}
        return await model.api.generate(chat, **arguments)

    with pytest.raises(PrerequisiteError) as caught:
        anyio.run(one)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("no-such-run", {}, "no adapter in no-such-run: adapter_config.json is missing (is the run finished?)"),
        (None, {"bsae": "x"}, "unknown model argument 'bsae'; known: base, plain, "),
        (None, {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (None, {"dtype": "int3"}, "unknown dtype 'int3'"),
        (None, {"plain": True, "routed_tokens": 3}, "routed_tokens needs an adapter"),
    ],
)
def test_a_mistake_is_one_line(run_folder: Path, name: str | None, arguments: dict, said: str) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        get_model(f"mogu/{name or run_folder}", **arguments)
    assert caught.value.message.startswith(said)


def test_tokens_are_counted_with_the_models_tokenizer(model: Model) -> None:
    assert anyio.run(model.api.count_text_tokens, "How do I steal a car?") == 6
