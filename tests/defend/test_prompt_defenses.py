"""Defences that edit the conversation keep all its turns and its system message."""

from __future__ import annotations

from pathlib import Path

import defended
import small

from mogu.defend import create
from mogu.defend.icd import DEMONSTRATION
from mogu.defend.self_reminder import REMINDER, SUFFIX
from mogu.judge import label_response

TALK = [
    {"role": "system", "content": "You sell boats."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good day!"},
    {"role": "user", "content": "How do I paint one?"},
]
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + small.CHAT
)


def edited(name: str, conversation: list[dict[str, str]], workspace: Path, template: str = small.CHAT) -> object:
    before = [dict(message) for message in conversation]
    tokenizer = small.tokenizer()
    tokenizer.chat_template = template
    pipeline = create(name, defended.target(workspace, tokenizer=tokenizer))
    (found,) = pipeline.defenses[0].before([conversation])
    assert conversation == before
    return found


def test_self_reminder_stands_around_the_last_turn(tmp_path: Path) -> None:
    _, *middle, last = TALK
    assert edited("self-reminder", TALK, tmp_path) == [
        {"role": "system", "content": f"You sell boats.\n\n{REMINDER}"},
        *middle,
        {"role": "user", "content": f"How do I paint one?{SUFFIX}"},
    ]
    assert edited("self-reminder", [last], tmp_path) == [
        {"role": "system", "content": REMINDER},
        {"role": "user", "content": f"How do I paint one?{SUFFIX}"},
    ]


def test_self_reminder_does_without_a_system_message_where_the_template_takes_none(tmp_path: Path) -> None:
    assert edited("self-reminder", TALK[1:], tmp_path, NO_SYSTEM) == [
        *TALK[1:3],
        {"role": "user", "content": f"{REMINDER}\nHow do I paint one?{SUFFIX}"},
    ]


def test_icd_shows_one_refusal_first(tmp_path: Path) -> None:
    assert edited("icd", TALK, tmp_path) == [TALK[0], *DEMONSTRATION, *TALK[1:]]
    assert edited("icd", TALK[3:], tmp_path) == [*DEMONSTRATION, TALK[3]]
    asked, shown = DEMONSTRATION
    assert label_response(asked["content"], shown["content"]) == "refusal"


def test_what_is_put_in_reaches_the_model(tmp_path: Path) -> None:
    target = defended.target(tmp_path)
    plain = defended.answers(create("none", target))
    for name in ("icd", "self-reminder"):
        assert defended.answers(create(name, target)) != plain
