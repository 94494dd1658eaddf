"""A tail on vLLM, where it is installed and runs tiny models on this machine.

It wants versions of its own, so it may live in another environment: ``MOGU_VLLM_PYTHON`` is the python of that.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import small
import tiny
import world
from serving import Serving
from world import ASKED, asking

from mogu.serve.engine import LocalEngine
from mogu.serve.server import bind
from mogu.serve.tail import TailEngine
from mogu.serve.upstream import Upstream

PYTHON = os.environ.get("MOGU_VLLM_PYTHON") or (sys.executable if importlib.util.find_spec("vllm") else None)
pytestmark = pytest.mark.skipif(PYTHON is None, reason="vLLM is not installed, nor named by MOGU_VLLM_PYTHON")
START_SECONDS = 600


def base() -> Any:
    """As in :mod:`world`, with heads as wide as vLLM's attention on CPUs wants them."""
    return small.base(head_dim=32)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = str(tmp_path_factory.mktemp("base"))
    base().save_pretrained(folder)
    small.tokenizer().save_pretrained(folder)
    free = bind("127.0.0.1", 0)
    port = free.getsockname()[1]
    free.close()
    log = Path(folder) / "log"
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--dtype", "float32"]
    command += ["--served-model-name", "base", "--port", str(port), "--max-model-len", "128", "--enforce-eager"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        url = f"http://127.0.0.1:{port}"
        for _ in range(START_SECONDS):
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(1)
        yield f"{url}/v1"
        process.terminate()
        process.wait()


def test_answers_are_those_of_one_process(vllm: str) -> None:
    model = tiny.adapted(base(), strength=0.5, risk=world.CALIBRATION, layers_to_transform=[1, 2])
    tokens = [world.generated(model, world.ids_of(text)) for text in ASKED]
    with TailEngine(LocalEngine(model, small.tokenizer(), rows=4, kv_tokens=400), Upstream(vllm)) as engine:
        serving = Serving(engine, small.tokenizer(), world.settings())
        client = serving.client()
        for text, expected in zip(ASKED, tokens, strict=True):
            answer = client.chat.completions.create(**asking(text, logprobs=True, top_logprobs=3))
            assert answer.choices[0].message.content == world.text_of(expected)
            assert answer.usage.completion_tokens == len(expected)
            assert all(len(one.top_logprobs) == 3 for one in answer.choices[0].logprobs.content)
        serving.end()
