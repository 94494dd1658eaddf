"""Text of an answer, token by token."""

from __future__ import annotations

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mogu.serve.detokenize import TextStream


def of_bytes() -> PreTrainedTokenizerFast:
    """A token for each byte, as byte-level BPE without merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({"</s>": 0, **{letter: n + 1 for n, letter in enumerate(letters)}}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


TEXT = "Grüße, 世界 🙂!"


def test_no_character_comes_in_parts() -> None:
    tokenizer = of_bytes()
    stream = TextStream(tokenizer)
    pieces = [stream.push(token)[0] for token in tokenizer(TEXT)["input_ids"]]
    assert len(pieces) == len(TEXT.encode())
    assert "".join(pieces) == TEXT
    assert not any("�" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_dropped() -> None:
    tokenizer = of_bytes()
    stream = TextStream(tokenizer)
    pieces = [stream.push(token)[0] for token in tokenizer("ab🙂")["input_ids"][:-1]]
    assert "".join(pieces) + stream.end() == "ab"


def test_bytes_that_are_no_character_do_not_hold_the_rest_back() -> None:
    tokenizer = of_bytes()
    lead = tokenizer("ü")["input_ids"][0]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token)[0] for token in [lead] * 6]
    assert "".join(pieces) == "���"
    assert stream.push(tokenizer("a")["input_ids"][0])[0] == "���a"


def test_words_are_joined_as_in_one_go() -> None:
    tokenizer = tiny.tokenizer()
    ids = [4, 9, 2, 30, 31]  # with a special token
    stream = TextStream(tokenizer)
    assert "".join(stream.push(token)[0] for token in ids) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one END two", ["END"], "one "),
        ("one EN two", ["END"], "one EN two"),
        ("aab", ["ab"], "a"),
        ("one E", ["END"], "one E"),
        ("x\n\ny", ["\n\n", "zz"], "x"),
        ("a世界b", ["界"], "a世"),
    ],
)
def test_a_stop_string_ends_the_text(text: str, stop: list[str], expected: str) -> None:
    tokenizer = of_bytes()
    stream, given = TextStream(tokenizer, stop), ""
    for token in tokenizer(text)["input_ids"]:
        new, stopped = stream.push(token)
        given += new
        assert expected.startswith(given)
        if stopped:
            break
    assert given + stream.end() == expected
