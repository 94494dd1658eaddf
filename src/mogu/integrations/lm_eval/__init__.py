"""lm-evaluation-harness: the model ``mogu``, and its command line with that model registered."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mogu.errors import ConfigError, MoguError
from mogu.integrations import require

require("lm_eval", "lm-eval")


def main(arguments: Sequence[str]) -> None:
    """lm-eval's own command line, ``lm-eval ARGUMENTS``, which also knows ``--model mogu``.

    Raises:
        ConfigError: What lm-eval has to say about tasks, options and files.
        MoguError: The model cannot be loaded.
    """
    import lm_eval.__main__ as harness
    from lm_eval.api.registry import model_registry

    if "mogu" not in model_registry:
        model_registry.register("mogu", target="mogu.integrations.lm_eval.model:MoguLM")
    before = sys.argv
    sys.argv = ["lm-eval", *arguments]
    try:
        harness.cli_evaluate()
    except MoguError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"lm-eval: {error}") from error
    finally:
        sys.argv = before
