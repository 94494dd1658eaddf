"""What is said where an extra is not installed."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from mogu.cli.main import app
from mogu.errors import MissingExtraError


@pytest.mark.parametrize(
    ("package", "module", "extra"),
    [
        ("inspect_ai", "mogu.integrations.inspect_ai", "inspect"),
        ("lm_eval", "mogu.integrations.lm_eval", "lm-eval"),
    ],
)
def test_a_missing_extra_is_named(package: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MissingExtraError) as caught:
        __import__(module)
    assert str(caught.value) == f"{package} is not installed; run: pip install 'mogu-llm[{extra}]'"


def test_the_command_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "mogu.integrations.lm_eval", raising=False)
    result = CliRunner().invoke(app, ["lm-eval", "--model", "mogu", "--tasks", "x"], prog_name="mogu")
    assert result.exit_code == 2
    assert result.stderr == "error: lm_eval is not installed; run: pip install 'mogu-llm[lm-eval]'\n"
