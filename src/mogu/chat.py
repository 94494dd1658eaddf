"""From an instruction or a conversation to token ids. Prompt formatting lives here and nowhere else.

By default the tokenizer's own chat template is used. The paper's models were run with published templates of their
time; :data:`TEMPLATES` holds these, for tokenizers without one and for reproducing published numbers.

What a message says is text. Where it spells a control token (``<|im_end|>``), :func:`prompt_ids` encodes the letters
and not the token, so that no user can end a turn and begin one in another role.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from mogu.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
"""One turn: ``{"role": "system" | "user" | "assistant", "content": text}``."""

Ending = Literal["answer", "continue", "none"]
"""Where a prompt ends: where the assistant begins to speak, inside its last message, or after the last turn."""

_REASONING = frozenset({"<think>", "</think>"})
"""Control tokens that models write into their own answers, and that come back with a conversation."""

TEMPLATES = {
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
        "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
        "{% for message in turns %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "vicuna": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}"
        "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
        "{% for message in turns %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "falcon": (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}"
        "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
        "{% for message in turns %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
        "{% else %}{{ 'Assistant: ' + message['content'] + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
}
"""Published chat templates as Jinja, by name."""


def to_messages(prompt: str | Sequence[Message], system: str | None = None) -> list[Message]:
    """A conversation from a bare instruction or from messages, with an optional system prompt in front."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return messages


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    *,
    system: str | None = None,
    template: str | None = None,
    ending: Ending = "answer",
) -> list[int]:
    """Token ids of ``prompt`` up to where the assistant begins to speak; arguments as for :func:`prompt_text`.

    Control tokens come from the template only: those that a message spells are encoded as the text that they are.

    Raises:
        ConfigError: As :func:`prompt_text`.
    """
    pieces, special = prompt_pieces(tokenizer, prompt, system=system, template=template, ending=ending)
    return _encode(tokenizer, pieces, special)


def prompt_pieces(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    *,
    system: str | None = None,
    template: str | None = None,
    ending: Ending = "answer",
) -> tuple[list[str], bool]:
    """What :func:`prompt_text` returns, cut so that no piece holds a whole control token that a message spells.

    Encoded one by one, the pieces are the prompt; only the first with the special tokens that a tokenizer adds, if any.
    """
    messages = to_messages(prompt, system)
    controls = control_tokens(tokenizer, template)
    marked, marks = _marked(messages, controls)
    text, special = prompt_text(tokenizer, marked, template=template, ending=ending)
    pieces = [text] if marks is None else _pieces(text, marks, controls)
    return [pieces[0], *[piece for piece in pieces[1:] if piece]], special


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> list[str]:
    """Tokens that structure a conversation: the tokenizer's special ones, and those beside its vocabulary that the chat
    template writes."""
    source = TEMPLATES.get(template or "", str(getattr(tokenizer, "chat_template", None) or ""))
    return [
        token.content
        for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
        if token.content.strip() and (token.special or token.content in source)
    ]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of ``text`` alone, with what the tokenizer puts around it; control tokens that it spells are text."""
    pattern = _pattern(control_tokens(tokenizer))
    if pattern is None or pattern.search(text) is None:
        return list(tokenizer(text)["input_ids"])
    first, *rest = _apart(text, pattern)
    return _encode(tokenizer, [first, *[piece for piece in rest if piece]], True)


def _marked(messages: Sequence[Message], controls: Sequence[str]) -> tuple[Sequence[Message], tuple[str, str] | None]:
    """The messages with each control token that they spell between two letters that nobody uses, and these letters;
    ``None`` where there was none."""
    everywhere, answers = _pattern(controls), _pattern([token for token in controls if token not in _REASONING])
    said = "".join(message["content"] for message in messages)
    if everywhere is None or everywhere.search(said) is None:
        return messages, None
    unused = (chr(letter) for letter in range(0xE000, 0xF900) if chr(letter) not in said)
    opening, closing = next(unused), next(unused)

    def mark(message: Message) -> Message:
        pattern = answers if message["role"] == "assistant" else everywhere
        if pattern is None:
            return message
        return {**message, "content": pattern.sub(lambda found: opening + found[0] + closing, message["content"])}

    return [mark(message) for message in messages], (opening, closing)


def _pieces(text: str, marks: tuple[str, str], controls: Sequence[str]) -> list[str]:
    """``text`` cut so that each piece can be encoded alone, and no control token between ``marks`` is left whole."""
    opening, closing = marks
    pattern = _pattern(controls)
    assert pattern is not None
    pieces: list[str] = []
    for place, piece in enumerate(re.split(f"{opening}(.*?){closing}", text, flags=re.DOTALL)):
        plain = piece.replace(opening, "").replace(closing, "")  # of a template that cut a message in two
        pieces += _apart(plain, pattern) if place % 2 else [plain]
    return pieces


def _apart(text: str, pattern: re.Pattern[str]) -> list[str]:
    """``text`` cut behind the first letter of each control token: no piece holds one."""
    pieces, begin, place = [], 0, 0
    while found := pattern.search(text, place):
        place = found.start() + 1
        pieces.append(text[begin : place - (len(found[0]) == 1)])
        begin = place
    return [*pieces, text[begin:]]


def _encode(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], special: bool) -> list[int]:
    ids = list(tokenizer(pieces[0], add_special_tokens=special)["input_ids"])
    rest = list(pieces[1:])
    return ids + [n for row in (tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else ()) for n in row]


def _pattern(controls: Sequence[str]) -> re.Pattern[str] | None:
    """Finds control tokens, the longest first; ``None``: there are none."""
    return re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True)))) if controls else None


def prompt_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    *,
    system: str | None = None,
    template: str | None = None,
    ending: Ending = "answer",
) -> tuple[str, bool]:
    """``prompt`` as text up to the point where the assistant begins to speak, and whether the tokenizer shall add its
    special tokens to it (a chat template writes them itself).

    Args:
        tokenizer: The model's tokenizer.
        prompt: A bare instruction or a conversation.
        system: A system prompt; ``None`` leaves what the template does by itself.
        template: Name in :data:`TEMPLATES`; ``None`` uses the tokenizer's own, and for a tokenizer without one the
            instruction as plain text followed by a newline.
        ending: ``"continue"`` leaves the last message open, for a model that shall go on with it; ``"none"`` does not
            let the assistant begin.

    Raises:
        ConfigError: Unknown template name, or a template that does not show the last message, which shall go on.
    """
    if template is not None and template not in TEMPLATES:
        raise ConfigError(f"unknown chat template {template!r}; choose from {', '.join(sorted(TEMPLATES))}")
    messages = to_messages(prompt, system)
    if template is None and not tokenizer.chat_template:
        return "\n".join(message["content"] for message in messages) + ("" if ending == "continue" else "\n"), True
    going_on = {"continue_final_message": True} if ending == "continue" else {}
    try:
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=TEMPLATES[template] if template else None,
            add_generation_prompt=ending == "answer",
            tokenize=False,
            **going_on,
        )
    except ValueError as error:
        if ending != "continue":
            raise
        raise ConfigError("the chat template does not show the last message as it is: it cannot go on") from error
    return str(text), False


def accepts_system(tokenizer: PreTrainedTokenizerBase, template: str | None) -> bool:
    """Whether the chat template takes a system message; some refuse one."""
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    from jinja2 import TemplateError

    try:
        prompt_ids(tokenizer, messages, template=template)
    except TemplateError:
        return False
    return True


def response_ids(tokenizer: PreTrainedTokenizerBase, response: str, *, end_of_turn: bool = True) -> list[int]:
    """Token ids of an answer that follows :func:`prompt_ids`, closed by the end-of-turn token if asked."""
    ids = list(tokenizer(response, add_special_tokens=False)["input_ids"])
    return [*ids, tokenizer.eos_token_id] if end_of_turn else ids


def pad_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """Left-padded ``input_ids`` and ``attention_mask`` (int64, rows × longest prompt) for batched generation."""
    import torch

    width = max(len(ids) for ids in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
