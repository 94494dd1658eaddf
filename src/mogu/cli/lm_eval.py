"""``mogu lm-eval``: lm-evaluation-harness with the model ``mogu``."""

from __future__ import annotations

from typing import Annotated

import typer

PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""Settings of the command: whatever stands behind its name is lm-eval's."""


def lm_eval(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENTS", help="As for lm-eval, and --model mogu.")
    ] = None,
) -> None:
    """Measure general ability with routing on: lm-eval, which also knows --model mogu.

    For example: mogu lm-eval --model mogu --model_args adapter=RUN --tasks TASK. All options are lm-eval's own.
    """
    from mogu.integrations.lm_eval import main

    main(arguments or [])
