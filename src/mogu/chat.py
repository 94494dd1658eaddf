"""From an instruction or a conversation to token ids. Prompt formatting lives here and nowhere else.

By default the tokenizer's own chat template is used. The paper's models were run with published templates of their
time; :data:`TEMPLATES` holds these, for tokenizers without one and for reproducing published numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mogu.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
"""One turn: ``{"role": "system" | "user" | "assistant", "content": text}``."""

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
) -> list[int]:
    """Token ids of ``prompt`` up to where the assistant begins to speak; arguments as for :func:`prompt_text`."""
    text, special = prompt_text(tokenizer, prompt, system=system, template=template)
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def prompt_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    *,
    system: str | None = None,
    template: str | None = None,
) -> tuple[str, bool]:
    """``prompt`` as text up to the point where the assistant begins to speak, and whether the tokenizer shall add its
    special tokens to it (a chat template writes them itself).

    Args:
        tokenizer: The model's tokenizer.
        prompt: A bare instruction or a conversation.
        system: A system prompt; ``None`` leaves what the template does by itself.
        template: Name in :data:`TEMPLATES`; ``None`` uses the tokenizer's own, and for a tokenizer without one the
            instruction as plain text followed by a newline.

    Raises:
        ConfigError: Unknown template name.
    """
    if template is not None and template not in TEMPLATES:
        raise ConfigError(f"unknown chat template {template!r}; choose from {', '.join(sorted(TEMPLATES))}")
    messages = to_messages(prompt, system)
    if template is None and not tokenizer.chat_template:
        return "\n".join(message["content"] for message in messages) + "\n", True
    text = tokenizer.apply_chat_template(
        messages,
        chat_template=TEMPLATES[template] if template else None,
        add_generation_prompt=True,
        tokenize=False,
    )
    return str(text), False


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
