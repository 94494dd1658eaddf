"""From an exception to one line and an exit status: 2 for what the user can mend, 1 for our faults, 130 for Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from mogu import processes
from mogu.errors import MoguError

RESUMABLE = frozenset({"harden", "demo", "data", "train", "evaluate", "judge"})
"""Commands that go on where they stopped."""


class MoguGroup(TyperGroup):
    """A command group that ends in one line instead of a stack trace."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line; in standalone mode exit with its status."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        try:
            status = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            if not status:
                processes.end()
        except typer.Abort:
            status = 1
        except Exception as error:
            status = _report(error)
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the sub-command; Ctrl-C ends it quietly."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            again = "; run the same command again to go on" if ctx.invoked_subcommand in RESUMABLE else ""
            if processes.is_main():
                typer.echo(f"interrupted{again}", err=True)
            raise typer.Exit(130) from None


def _report(error: Exception) -> int:
    if os.environ.get("MOGU_DEBUG"):
        raise error
    if isinstance(error, processes.MainFailed) or not processes.first_to_fail():
        return 1
    if (line := explain(error)) is not None:
        typer.echo(f"error: {line}", err=True)
        return 2
    said = " ".join(str(error).split())[:300]
    typer.echo(
        f"error: {type(error).__name__}: {said} (a fault in mogu: please report it; MOGU_DEBUG=1 shows where)", err=True
    )
    return 1


def explain(error: BaseException) -> str | None:
    """What went wrong and what to do, in one line; ``None`` where the fault is ours."""
    if isinstance(error, MoguError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or _is(error, "torch", "OutOfMemoryError"):
        return "out of memory; take a smaller --batch-size, --dtype bfloat16 or --quantize 4bit"
    text = " ".join(str(error).split())
    if _is(error, "safetensors", "SafetensorError") or "PytorchStreamWriter" in text:
        return f"cannot write or read a file of weights: {text[:200]}; is the disk full?"
    if _is(error, "jinja2", "TemplateError"):
        return f"the model's chat template takes no such conversation: {text[:200]}"
    if hasattr(error, "format_message"):  # a usage error; its class depends on the version of typer
        return _usage(error)
    return None


def _is(error: BaseException, module: str, name: str) -> bool:
    """Whether ``error`` is of a class of a library that need not be loaded."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(error, kind)


def _usage(error: Any) -> str:
    text = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return text if context is None else f"{text} (see {context.command_path} --help)"
