"""What is wrong with the rows of a data set is said before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mogu.chat import prompt_ids, response_ids
from mogu.data.rows import Row
from mogu.errors import TrainingError
from mogu.recipe import Recipe
from mogu.train.selection import RESPONDER_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_data(config: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], recipe: Recipe) -> None:
    """Find what no training gets over: a class without rows, and rows that the base cannot read.

    Raises:
        TrainingError: One of these, and what to do.
    """
    for split in ("train", "validation"):
        for label in ("benign", "malicious"):
            if not any(row.split == split and row.label == label for row in rows):
                raise TrainingError(f"the data has no {label} row in the {split} split; add some and build it again")
    check_context(config, tokenizer, rows, recipe)


def check_context(config: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], recipe: Recipe) -> None:
    """Find rows that the base cannot read to the end.

    A training row takes its prompt and the longer of its answers as training cuts it, a validation row its prompt and
    the answer that it is asked for.

    Args:
        config: Configuration of the base; without ``max_position_embeddings`` its context counts as unlimited.
        tokenizer: Its tokenizer.
        rows: All rows; the test split is not looked at.
        recipe: Template and lengths of answers.

    Raises:
        TrainingError: Some rows are too long; the first one is named.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not limit:
        return
    lengths = {row.id: _tokens(tokenizer, row, recipe) for row in rows if row.split != "test"}
    long = [name for name, length in lengths.items() if length > limit]
    if long:
        others = f" and {len(long) - 1} more" if len(long) > 1 else ""
        raise TrainingError(
            f"row {long[0]!r}{others} in the data: prompt and answer take up to {max(lengths.values())} tokens, the "
            f"model's context is {limit}; shorten or remove such rows"
        )


def _tokens(tokenizer: PreTrainedTokenizerBase, row: Row, recipe: Recipe) -> int:
    """Tokens of the longest sequence that training or validation makes of a row."""
    prompt = len(prompt_ids(tokenizer, row.instruction, template=recipe.template))
    if row.split == "validation":
        return prompt + max(RESPONDER_TOKENS, recipe.balance.new_tokens)
    cut = max(part.answer_tokens for part in (recipe.glad, recipe.unwill, recipe.routers))
    return prompt + max(min(len(response_ids(tokenizer, text)), cut) for text in (row.glad, row.unwill))
