"""``mogu serve``: from the command line to a server, with the engine replaced by a scripted one."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
import scripted

from mogu.serve.start import public_name
from mogu.serve.state import State


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[State, dict[str, Any]]]:
    """What would have been served: the state of the application and the options of the engine."""
    found: list[tuple[State, dict[str, Any]]] = []
    options: dict[str, Any] = {}

    def local(model: Any, tokenizer: Any, **given: Any) -> scripted.Scripted:
        options.update(given)
        return scripted.Scripted()

    monkeypatch.setitem(sys.modules, "mogu.serve.engine", types.SimpleNamespace(LocalEngine=local))
    monkeypatch.setattr("mogu.serve.logs.to_stderr", lambda: None)
    monkeypatch.setattr(
        "mogu.serve.server.run", lambda app, bound: (bound.close(), found.append((app.state.mogu, options)))
    )
    return found


def test_a_run_is_served_as_it_was_trained(run, run_folder: Path, served) -> None:
    result = run("serve", "--adapter", run_folder, "--port", 0, "--max-rows", 3, "--queue", 5, "--dial", 1)
    assert result.exit_code == 0, result.output
    (state, options) = served[0]
    assert result.stdout.startswith("tiny-llama at http://127.0.0.1:")
    assert (state.served.routed_tokens, state.served.handover, state.served.layers) == (2, "fixed", (1, 2))
    assert state.served.fingerprint.startswith("mogu_")
    assert (state.settings.dial, state.settings.allow_overrides, state.settings.keys) == (1, False, ())
    assert options == {"rows": 3, "kv_tokens": 16384, "waiting": 5, "prefill_tokens": 256}


def test_a_configuration_file_and_keys(run, base_folder: str, served, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\n")
    (tmp_path / "a.yaml").write_text(
        f"model: {base_folder}\nport: 0\nname: mine\napi-key-file: {tmp_path}/keys\ncors-origin: [https://a, https://b]\n"
    )
    result = run("serve", "--config", tmp_path / "a.yaml", "--allow-client-overrides")
    assert result.exit_code == 0, result.output
    state = served[0][0]
    assert (state.served.name, state.served.routed, state.settings.keys) == ("mine", False, ("one",))
    assert (state.settings.cors_origins, state.settings.allow_overrides) == (("https://a", "https://b"), True)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--port", "0"], "name a model with --model, or an adapter with --adapter"),
        (["--api-key-file", "nix"], "cannot read nix: No such file or directory"),
        (["--tail-model", "base"], "--tail-model needs --tail-url"),
        (["--tail-url", "nix:1"], "'nix:1' is no URL of an engine; it looks like http://localhost:8001/v1"),
        (
            ["--tail-url", "http://nix/v1", "--tail-api-key-env", "MOGU_NIX"],
            "the environment variable MOGU_NIX is not set; it must hold the engine's key",
        ),
        (
            ["--adapter", "nix", "--port", "0"],
            "no adapter in nix: adapter_config.json is missing (is the run finished?)",
        ),
    ],
)
def test_mistakes_are_one_line(run, arguments: list[str], line: str, served, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("serve", *arguments)
    assert (result.exit_code, result.stderr) == (2, f"error: {line}\n")
    assert served == []


def test_a_hand_over_by_risk_needs_a_calibration(run, run_folder: Path, served) -> None:
    result = run("serve", "--adapter", run_folder, "--port", 0, "--handover", "risk")
    assert result.stderr == "error: --handover risk needs a calibrated risk, which this adapter has not\n"


def test_a_missing_extra_is_named(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "mogu.serve.app", raising=False)
    result = run("serve", "--model", "smollm2")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: fastapi is not installed; run: pip install 'mogu-llm[serve]'\n",
    )


@pytest.mark.parametrize(
    ("model", "name"),
    [("smollm2", "smollm2"), ("Org/Model", "Org/Model"), ("/a/b/model.gguf", "model"), ("./mine", "mine")],
)
def test_names_for_clients(model: str, name: str) -> None:
    assert public_name(model) == name


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], True),
        (["--no-playground"], False),
        (["--api-key-file", "keys"], False),
        (["--api-key-file", "keys", "--playground"], True),
        (["--host", "0.0.0.0"], False),
        (["--host", "0.0.0.0", "--playground"], True),
    ],
)
def test_the_playground(
    run, run_folder: Path, served, tmp_path, monkeypatch, arguments: list[str], shown: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").write_text("one\n")
    result = run("serve", "--adapter", run_folder, "--port", 0, *arguments)
    assert served[0][0].settings.playground is shown
    assert ("/playground" in result.stdout) is shown
