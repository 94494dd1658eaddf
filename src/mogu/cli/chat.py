"""``mogu chat``: a conversation in the terminal, with a look at the routers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mogu.cli import options
from mogu.cli.errors import explain

if TYPE_CHECKING:
    from mogu.chat import Message
    from mogu.loading import Loaded

HELP = """\
/router       router weights of the last turn, layer by layer
/plain        switch between the hardened model and its base
/system TEXT  set the system prompt (without TEXT: none) and start afresh
/reset        start afresh
/help         these lines
/quit         leave (or Ctrl-D); Ctrl-C stops an answer"""
_BAR = 20
_CONTEXT = 2048


def chat(
    adapter: Annotated[Path, typer.Option(metavar="RUN", help="Run folder or adapter folder.")],
    model: options.OptionalModel = None,
    max_new_tokens: options.MaxNewTokens = 512,
    plain: options.Plain = False,
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    routed_tokens: options.RoutedTokens = None,
    dial: options.Dial = None,
    handover: options.Handover = None,
    risk_threshold: options.RiskThreshold = None,
    template: options.Template = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    quantize: options.Quantize = None,
    offload: options.Offload = None,
    config: options.Config = None,
) -> None:
    """Talk to a hardened model. /help lists what can be asked of the program itself."""
    print(f"loading {model or adapter} …", file=sys.stderr, flush=True)
    from mogu.cli import loading

    loaded = loading.load(
        model, adapter, template=template, dtype=dtype, device=device, quantize=quantize, offload=offload
    )
    decoding = loading.sampling(temperature, top_p, seed) | loading.routing_options(
        loaded, routed_tokens=routed_tokens, dial=dial, handover=handover, risk_threshold=risk_threshold
    )
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    print(f"{loaded.name} with {loaded.adapter}; /help for help")
    Conversation(loaded, {"max_new_tokens": max_new_tokens, **decoding}, system, plain).run()


class Conversation:
    """The turns so far, and what the user set."""

    def __init__(self, loaded: Loaded, decoding: dict[str, object], system: str | None, plain: bool) -> None:
        self.loaded, self.decoding, self.system, self.plain = loaded, decoding, system, plain
        self.messages: list[Message] = []

    def run(self) -> None:
        """Read and answer until the user leaves."""
        prompt = "> " if sys.stdin.isatty() else ""
        while True:
            try:
                line = input(prompt).strip()
            except EOFError:
                if prompt:
                    print()
                return
            except KeyboardInterrupt:
                print("\n/quit or Ctrl-D leaves")
                continue
            if line in ("/quit", "/exit"):
                return
            try:
                if line.startswith("/"):
                    print(self.command(line))
                elif line:
                    self.turn(line)
            except KeyboardInterrupt:
                print("\ninterrupted")

    def command(self, line: str) -> str:
        """Do what a line that starts with a slash says; the reply to show."""
        name, _, text = line.partition(" ")
        if name == "/router":
            return self.router()
        if name == "/plain":
            self.plain = not self.plain
            return "now: the plain base" if self.plain else "now: the hardened model"
        if name == "/system":
            self.system, self.messages = text.strip() or None, []
            return "system prompt set; a new conversation" if self.system else "no system prompt; a new conversation"
        if name == "/reset":
            self.messages = []
            return "a new conversation"
        return HELP if name == "/help" else f"unknown command {name}\n{HELP}"

    def turn(self, text: str) -> None:
        """Answer one turn, word by word; what was said before an interruption stays."""
        from mogu.cli import loading

        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        streamer = loading.printer(self.loaded)
        try:
            self._make_room()
            with loading.routing(self.loaded, self.plain):
                loading.answer(self.loaded, [self.messages], self.system, 1, streamer=streamer, **self.decoding)
        except KeyboardInterrupt:
            if not streamer.text.strip():
                self.messages = before
                raise
            print("\ninterrupted")
        except Exception as error:
            self.messages = before
            if (line := explain(error)) is None:
                raise
            print(f"error: {line}")
            return
        self.messages.append({"role": "assistant", "content": streamer.text.strip()})

    def router(self) -> str:
        """Router weights at the end of the last prompt, as bars."""
        import torch

        from mogu.adapter.model import mogu_layers
        from mogu.decode.inspect import prompt_weights

        if not self.messages:
            return "no turn yet; say something first"
        model = self.loaded.model
        unwill, glad = prompt_weights(model, torch.tensor([self._prompt_ids(self.messages[:-1])]))
        return router_bars([index for index, _ in mogu_layers(model)], unwill.tolist(), glad.tolist())

    def _prompt_ids(self, messages: list[Message]) -> list[int]:
        from mogu.chat import prompt_ids

        return prompt_ids(self.loaded.tokenizer, messages, system=self.system, template=self.loaded.template)

    def _make_room(self) -> None:
        """Forget the oldest turns when the context would overflow."""
        shape = self.loaded.model.config.get_text_config()
        limit = getattr(shape, "max_position_embeddings", None) or _CONTEXT
        room = max(limit - int(str(self.decoding["max_new_tokens"])), limit // 2)
        forgot = False
        while len(self.messages) > 2 and len(self._prompt_ids(self.messages)) > room:
            self.messages, forgot = self.messages[2:], True
        if forgot:
            print("(the context is full: the oldest turns are forgotten)")


def router_bars(layers: Sequence[int], unwill: Sequence[float], glad: Sequence[float]) -> str:
    """A line with two bars for each layer, and the means."""
    rows = [(str(layer), u, g) for layer, u, g in zip(layers, unwill, glad, strict=True)]
    rows.append(("mean", sum(unwill) / len(unwill), sum(glad) / len(glad)))
    title = f"{'layer':>5}  {'unwill':<{_BAR + 6}}  glad"
    return "\n".join([title, *(f"{name:>5}  {_bar(u)} {u:.2f}   {_bar(g)} {g:.2f}" for name, u, g in rows)])


def _bar(share: float) -> str:
    full = round(share * _BAR)
    return "█" * full + "░" * (_BAR - full)
