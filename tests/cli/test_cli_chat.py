"""``mogu chat``: turns, slash commands, and what Ctrl-C and the end of input do."""

from __future__ import annotations

from pathlib import Path

import pytest

import mogu
from mogu.chat import to_messages
from mogu.cli.chat import HELP, Conversation, router_bars
from mogu.decode.inspect import prompt_weights
from mogu.loading import Loaded
from mogu.respond import respond

CAR, POEM = "How do I steal a car?", "Write a poem about a bank"


@pytest.fixture
def loaded(base_folder: str, run_folder: Path) -> Loaded:
    model, tokenizer = mogu.load(base_folder, run_folder)
    return Loaded(model, tokenizer, "tiny", run_folder / "adapter", None)


def _replies(loaded: Loaded, messages: list[dict[str, str]], *, plain: bool = False) -> str:
    if plain:
        with loaded.model.disable_adapter():
            return respond(loaded.model, loaded.tokenizer, [messages], max_new_tokens=5)[0]
    return respond(loaded.model, loaded.tokenizer, [messages], max_new_tokens=5)[0]


def _conversation(loaded: Loaded) -> Conversation:
    return Conversation(loaded, {"max_new_tokens": 5}, None, False)


def test_a_whole_session(run, run_folder: Path, base_folder: str, loaded: Loaded) -> None:
    first = _replies(loaded, to_messages(CAR))
    turns = [*to_messages(CAR), {"role": "assistant", "content": first}, {"role": "user", "content": POEM}]
    second = _replies(loaded, turns)
    stdin = f"{CAR}\n{POEM}\n/reset\n/plain\n{CAR}\n/quit\nnever read\n"
    result = run("chat", "--adapter", run_folder, "--max-new-tokens", 5, stdin=stdin)
    assert result.exit_code == 0
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        f"{base_folder} with {run_folder}/adapter; /help for help",
        first,
        second,
        "a new conversation",
        "now: the plain base",
        _replies(loaded, to_messages(CAR), plain=True),
    ]


def test_the_end_of_input_ends_the_chat(run, run_folder: Path) -> None:
    result = run("chat", "--adapter", run_folder, stdin="")
    assert result.exit_code == 0


def test_system_prompt_begins_afresh(loaded: Loaded, capsys) -> None:
    talk = _conversation(loaded)
    talk.turn(POEM)
    assert talk.command("/system poem") == "system prompt set; a new conversation"
    capsys.readouterr()
    talk.turn(CAR)
    assert capsys.readouterr().out.strip() == _replies(loaded, to_messages(CAR, "poem"))
    assert talk.command("/system") == "no system prompt; a new conversation"
    assert (talk.system, talk.messages) == (None, [])


def test_unknown_commands_show_the_known_ones(loaded: Loaded) -> None:
    assert _conversation(loaded).command("/nix") == f"unknown command /nix\n{HELP}"
    assert _conversation(loaded).command("/help") == HELP


def test_router_shows_the_weights_at_the_end_of_the_last_prompt(loaded: Loaded, capsys) -> None:
    import torch

    from mogu.chat import prompt_ids

    talk = _conversation(loaded)
    assert talk.command("/router") == "no turn yet; say something first"
    talk.turn(CAR)
    ids = torch.tensor([prompt_ids(loaded.tokenizer, CAR)])
    unwill, glad = prompt_weights(loaded.model, ids)
    assert talk.command("/router") == router_bars([1, 2], unwill.tolist(), glad.tolist())


def test_bars_are_to_scale() -> None:
    assert router_bars([0, 11], [1.0, 0.5], [0.0, 0.3]) == (
        "layer  unwill                      glad\n"
        "    0  ████████████████████ 1.00   ░░░░░░░░░░░░░░░░░░░░ 0.00\n"
        "   11  ██████████░░░░░░░░░░ 0.50   ██████░░░░░░░░░░░░░░ 0.30\n"
        " mean  ███████████████░░░░░ 0.75   ███░░░░░░░░░░░░░░░░░ 0.15"
    )


@pytest.mark.parametrize(("said", "kept"), [("", 0), ("Once upon a ", 2)])
def test_ctrl_c_keeps_what_was_said(loaded: Loaded, monkeypatch, capsys, said: str, kept: int) -> None:
    from mogu.cli import loading

    def interrupted(*_: object, streamer, **__: object) -> None:
        streamer.on_finalized_text(said)
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "answer", interrupted)
    talk = _conversation(loaded)
    lines = iter([CAR, "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    talk.run()
    assert capsys.readouterr().out == f"{said}\ninterrupted\n"
    assert len(talk.messages) == kept


def test_ctrl_c_at_the_prompt_does_not_leave(loaded: Loaded, monkeypatch, capsys) -> None:
    answers = iter([KeyboardInterrupt, EOFError])

    def read(_: str) -> str:
        raise next(answers)

    monkeypatch.setattr("builtins.input", read)
    _conversation(loaded).run()
    assert capsys.readouterr().out == "\n/quit or Ctrl-D leaves\n"


def test_a_template_without_system_prompts_is_one_line(loaded: Loaded, capsys) -> None:
    loaded.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    talk = _conversation(loaded)
    talk.turn(CAR)
    assert capsys.readouterr().out == (
        "error: the model's chat template takes no such conversation: System role not supported\n"
    )
    assert talk.messages == []


def test_the_oldest_turns_make_room(loaded: Loaded, capsys) -> None:
    talk = Conversation(loaded, {"max_new_tokens": 100}, None, False)  # of 128 positions, so 64 for the prompt
    talk.messages = [{"role": role, "content": "car " * 20} for role in ("user", "assistant", "user", "assistant")]
    talk.messages.append({"role": "user", "content": CAR})
    talk._make_room()
    assert capsys.readouterr().out == "(the context is full: the oldest turns are forgotten)\n"
    assert [m["content"] for m in talk.messages] == ["car " * 20] * 2 + [CAR]
