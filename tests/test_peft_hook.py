"""MoGU registers itself with peft, whichever is imported first, and importing it alone is quick."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from mogu import _peft_hook


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often MoGU has registered, with an empty package in the place of peft that is not imported yet."""
    calls: list[str] = []
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text("ready = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)  # so that the real one comes back afterwards
    del sys.modules["peft"]
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(_peft_hook, "_register", lambda: calls.append(str(sys.modules["peft"].ready)))
    return calls


def test_registers_after_peft_is_imported(registered: list[str]) -> None:
    _peft_hook.register_with_peft()
    assert registered == []
    import peft

    assert registered == ["True"]
    assert Path(peft.__file__).name == "__init__.py"
    assert not any(isinstance(finder, _peft_hook._PeftFinder) for finder in sys.meta_path)


def test_registers_at_once_where_peft_is_there(registered: list[str]) -> None:
    import peft  # noqa: F401

    _peft_hook.register_with_peft()
    assert registered == ["True"]


def test_asking_whether_peft_is_installed_does_not_use_the_hook_up(registered: list[str]) -> None:
    """transformers asks so at its import."""
    _peft_hook.register_with_peft()
    assert importlib.util.find_spec("peft") is not None
    assert registered == []
    import peft  # noqa: F401

    assert registered == ["True"]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_mogu_is_quick_because_nothing_heavy_is_imported() -> None:
    heavy = "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    assert run(f"import sys, mogu; {heavy}") == "[]"


@pytest.mark.slow
def test_the_real_peft_knows_mogu_after_transformers_has_looked_for_it() -> None:
    look = "import mogu, transformers.utils as u; u.is_peft_available()"
    assert run(f"{look}; import peft; print(peft.PeftType('MOGU').value)") == "MOGU"
