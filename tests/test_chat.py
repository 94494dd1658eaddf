"""From conversations to token ids."""

from __future__ import annotations

import pytest
import tiny
from transformers import PreTrainedTokenizerFast

from mogu.chat import TEMPLATES, pad_prompts, prompt_ids, response_ids, to_messages
from mogu.errors import ConfigError

CONVERSATION = [
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "answer"},
    {"role": "user", "content": "second"},
]


class Written:
    """A tokenizer whose ids are the letters, so that tests can read what a template writes."""

    chat_template: str | None = None
    eos_token_id = ord("$")
    pad_token_id = ord("_")

    def __init__(self, chat_template: str | None = None) -> None:
        self.real = tiny.tokenizer(chat_template)
        self.chat_template = chat_template

    def apply_chat_template(self, *args: object, **options: object) -> object:
        options["chat_template"] = options["chat_template"] or self.chat_template
        return self.real.apply_chat_template(*args, **options)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in ("^" if add_special_tokens else "") + text]}


def written(prompt: object, tokenizer: object = None, **options: object) -> str:
    return "".join(map(chr, prompt_ids(tokenizer or Written(), prompt, **options)))


@pytest.mark.parametrize(
    ("template", "system", "expected"),
    [
        ("llama-2", None, "<s>[INST] first [/INST] answer </s><s>[INST] second [/INST]"),
        (
            "llama-2",
            "Be kind.",
            "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nfirst [/INST] answer </s><s>[INST] second [/INST]",
        ),
        ("vicuna", None, "<s>USER: first ASSISTANT: answer</s>USER: second ASSISTANT:"),
        ("vicuna", "Be kind.", "<s>Be kind. USER: first ASSISTANT: answer</s>USER: second ASSISTANT:"),
        ("falcon", None, "User: first\n\nAssistant: answer\n\nUser: second\n\nAssistant:"),
        ("falcon", "Be kind.", "Be kind.\n\nUser: first\n\nAssistant: answer\n\nUser: second\n\nAssistant:"),
    ],
)
def test_published_templates(template: str, system: str | None, expected: str) -> None:
    assert written(CONVERSATION, template=template, system=system) == expected


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_instruction_is_a_conversation_of_one_turn(template: str) -> None:
    assert written("second", template=template) == written([CONVERSATION[-1]], template=template)


def test_the_tokenizers_own_template_is_the_default() -> None:
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer = Written(turns + "{% if add_generation_prompt %}>>{% endif %}")
    assert written(CONVERSATION, tokenizer) == "<user>first<assistant>answer<user>second>>"
    assert written("hi", tokenizer, system="Be kind.") == "<system>Be kind.<user>hi>>"
    assert written("hi", tokenizer, template="falcon") == "User: hi\n\nAssistant:"


def test_without_any_template_the_text_itself_with_special_tokens_is_the_prompt() -> None:
    assert written("hi") == "^hi\n"
    assert written("hi", system="Be kind.") == "^Be kind.\nhi\n"


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown chat template 'llama2'; choose from falcon, llama-2, vicuna"):
        written("hi", template="llama2")


def test_the_callers_messages_are_left_alone() -> None:
    messages = to_messages(CONVERSATION, "Be kind.")
    messages[1]["content"] = "changed"
    assert CONVERSATION[0] == {"role": "user", "content": "first"}
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]


def test_a_response_ends_with_the_end_of_turn_if_asked() -> None:
    assert "".join(map(chr, response_ids(Written(), "Sure"))) == "Sure$"
    assert "".join(map(chr, response_ids(Written(), "Sure", end_of_turn=False))) == "Sure"


def test_prompts_are_padded_on_the_left() -> None:
    batch = pad_prompts(tiny.tokenizer(), [[5, 6, 7], [8]])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_no_special_token_is_added_twice() -> None:
    tokenizer: PreTrainedTokenizerFast = tiny.tokenizer()
    ids = prompt_ids(tokenizer, "w5", template="vicuna")
    assert ids.count(tokenizer.bos_token_id) == 1
