"""Publishing: the same files in a folder and on the hub (stood in for by a class that remembers), and no local path."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import small
import tiny
from huggingface_hub.repocard import metadata_load
from torch import equal

from mogu import publish
from mogu.adapter import store
from mogu.errors import AdapterError, ConfigError, PublishError
from mogu.publish import FILES, push
from mogu.recipe import Recipe

SELECTION: dict[str, Any] = {"glad": [], "unwill": [], "balance": []}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with an adapter for a base in a local folder, and figures."""
    base = small.save_base(tmp_path / "secret" / "tiny-llama")
    model = tiny.adapted(small.base(), base_model=base, routed_tokens=2)
    model.peft_config["default"].base_model_name_or_path = base
    record = {"model": base, "recipe": "tiny", "seed": 0, "shift": 0.5, "layers": [0, 1, 2], "selection": SELECTION}
    files = {"recipe.yaml": small.RECIPE.to_yaml(), "mogu.json": json.dumps(record), "README.md": "old"}
    store.save(model, tmp_path / "run" / "adapter", files)
    rates = {label: {"rate": 0.5, "low": 0.0, "high": 1.0} for label in ("refusal", "complied", "degenerate")}
    suites = [{"name": "held-out benign", "kind": "benign", "n": 2, "systems": {"mogu": {"n": 2, "rates": rates}}}]
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"suites": suites, "selection": SELECTION}))
    return tmp_path / "run"


class Hub:
    """Remembers calls, and what the uploaded folder held."""

    calls: list[tuple[str, Any]]
    failing: Exception | None

    def __init__(self, **settings: Any) -> None:
        assert settings["library_name"] == "mogu"

    def create_repo(self, repo_id: str, **options: Any) -> str:
        if Hub.failing is not None:
            raise Hub.failing
        Hub.calls.append(("create", (repo_id, options)))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert commit_message
        Hub.calls.append(("upload", (repo_id, {p.name: p.read_bytes() for p in Path(folder_path).iterdir()})))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.calls, Hub.failing = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


# to a folder


def test_a_folder_gets_the_adapter_its_recipe_record_and_card(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "copy"
    assert push(run, str(out)) == str(out)
    assert {path.name for path in out.iterdir()} == set(FILES)
    source = run / "adapter"
    assert (out / "adapter_model.safetensors").read_bytes() == (source / "adapter_model.safetensors").read_bytes()
    assert (out / "recipe.yaml").read_text() == small.RECIPE.to_yaml()
    assert "held-out benign" in (out / "README.md").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["copy"]


def test_the_copy_is_loaded_as_the_adapter_itself(run: Path, tmp_path: Path) -> None:
    push(run, str(tmp_path / "copy"))
    ids = tiny.prompts(5)[0]
    one, two = (store.attach(small.base(), folder)(input_ids=ids).logits for folder in (run, tmp_path / "copy"))
    assert equal(one, two)


def test_no_path_of_this_machine_is_published(run: Path, tmp_path: Path) -> None:
    push(run, str(tmp_path / "copy"))
    for path in (tmp_path / "copy").iterdir():
        assert b"secret" not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()
    config = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    assert (config["base_model"], config["base_model_name_or_path"]) == ("tiny-llama", "tiny-llama")


def test_the_base_can_be_named(run: Path, tmp_path: Path) -> None:
    push(run, str(tmp_path / "copy"), base="meta-llama/Llama-3.2-1B-Instruct")
    config = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    assert config["base_model"] == config["base_model_name_or_path"] == "meta-llama/Llama-3.2-1B-Instruct"
    assert metadata_load(tmp_path / "copy" / "README.md")["base_model"] == "meta-llama/Llama-3.2-1B-Instruct"
    assert json.loads((tmp_path / "copy" / "mogu.json").read_text())["model"] == "meta-llama/Llama-3.2-1B-Instruct"


def test_an_earlier_copy_is_replaced(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    push(run, str(out))
    (out / "README.md").write_text("edited")
    push(run / "adapter", str(out))
    assert (out / "README.md").read_text().startswith("---\nlibrary_name: peft")


def test_a_relative_folder_is_taken_from_here(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert push(run, "./copy") == str(tmp_path / "copy")
    (tmp_path / "here" / "there").mkdir(parents=True)
    push(run, "here/there")  # looks like a repository, but exists
    assert (tmp_path / "here" / "there" / "README.md").is_file()


def test_a_folder_with_other_files_is_left_alone(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"mine holds other files \(thesis.tex\); give a new or an empty folder"):
        push(run, str(out))
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_the_adapter_itself_and_files_are_no_targets(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the adapter itself"):
        push(run, str(run / "adapter"))
    with pytest.raises(ConfigError, match="is a file"):
        push(run, str(run / "summary.json"))


def test_a_failed_write_leaves_the_earlier_copy_and_nothing_else(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "copy"
    push(run, str(out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publish, "write_text", full)
    with pytest.raises(PublishError, match=r"^cannot write to .*: No space left on device$"):
        push(run, str(out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["copy"]


# to the hub


def test_the_hub_gets_what_a_folder_gets(run: Path, tmp_path: Path, hub: type[Hub]) -> None:
    assert push(run, "me/mine") == "https://huggingface.co/me/mine"
    push(run, str(tmp_path / "copy"))
    (made, (name, options)), (sent, (place, files)) = hub.calls
    assert (made, name, options) == ("create", "me/mine", {"private": None, "exist_ok": True})
    assert (sent, place, set(files)) == ("upload", "me/mine", set(FILES))
    for path in (tmp_path / "copy").iterdir():
        if path.name != "README.md":  # which says where to load the adapter from
            assert files[path.name] == path.read_bytes()
    assert b"snapshot_download('me/mine')" in files["README.md"]


def test_a_repository_can_be_private(run: Path, hub: type[Hub]) -> None:
    push(run, "me/mine", private=True)
    assert hub.calls[0][1][1]["private"] is True


@pytest.mark.parametrize("error", [OSError("no token\nfound"), ValueError("no token found")])
def test_a_hub_that_refuses_is_one_line(run: Path, hub: type[Hub], error: Exception) -> None:
    hub.failing = error
    with pytest.raises(PublishError, match=r"^cannot push to me/mine: no token found; log in with: hf auth login$"):
        push(run, "me/mine")
    assert hub.calls == []


@pytest.mark.parametrize("to", ["mine", "me/mine/again", "me/", "-me/mine"])
def test_what_is_neither_repository_nor_folder_is_refused(run: Path, hub: type[Hub], to: str) -> None:
    with pytest.raises(ConfigError, match="--to takes OWNER/NAME, or a folder such as"):
        push(run, to)
    assert hub.calls == []


# what is there


def test_figures_of_an_earlier_adapter_are_not_published(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "adapter" / "mogu.json").read_text())
    (run / "adapter" / "mogu.json").write_text(json.dumps({**record, "selection": {"glad": [1]}}))
    push(run, str(tmp_path / "copy"))
    assert "Nothing was measured" in (tmp_path / "copy" / "README.md").read_text()


def test_an_imported_adapter_can_be_pushed(run: Path, tmp_path: Path) -> None:
    (run / "adapter" / "mogu.json").write_text(
        json.dumps({"model": "a/b", "imported": ["/secret/glad", "/secret/r.pth"]})
    )
    (run / "adapter" / "recipe.yaml").write_text("name: imported\n")
    push(run, str(tmp_path / "copy"))
    assert json.loads((tmp_path / "copy" / "mogu.json").read_text())["imported"] == ["glad", "r.pth"]
    assert metadata_load(tmp_path / "copy" / "README.md")["base_model"] == "a/b"


def test_a_bare_adapter_can_be_pushed(run: Path, tmp_path: Path) -> None:
    for name in ("mogu.json", "recipe.yaml", "README.md"):
        (run / "adapter" / name).unlink()
    push(run, str(tmp_path / "copy"))
    assert {path.name for path in (tmp_path / "copy").iterdir()} == set(FILES)
    assert (tmp_path / "copy" / "recipe.yaml").read_text() == Recipe(name="unknown").to_yaml()


def test_a_run_without_an_adapter_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is missing \(is the run finished\?\)"):
        push(run, str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def test_the_command_says_where_it_went(run: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mogu.cli.main import app

    result = CliRunner().invoke(app, ["push", str(run), "--to", str(tmp_path / "copy")], prog_name="mogu")
    assert (result.exit_code, result.stdout) == (0, f"adapter: {tmp_path / 'copy'}\n")
