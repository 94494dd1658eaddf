"""Options of ``mogu serve`` that no other command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Host = Annotated[str, typer.Option(metavar="HOST", help="Address; the default is this machine only.")]
Port = Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="0 takes a free one.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="API keys, one a line; also $MOGU_API_KEY, $MOGU_API_KEYS (commas)."),
]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="What clients call the model.")]
MaxRows = Annotated[int, typer.Option(metavar="N", min=1, help="Most answers in the making at once.")]
KvTokens = Annotated[
    int, typer.Option(metavar="N", min=16, help="Most tokens whose keys and values are held, of all answers.")
]
PrefillTokens = Annotated[
    int, typer.Option(metavar="N", min=1, help="Most prompt tokens that are read between two steps.")
]
Queue = Annotated[int, typer.Option(metavar="N", min=1, help="Most answers that wait; others get 429.")]
Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.001, help="From the arrival of a request to its last token.")
]
Grace = Annotated[float, typer.Option(metavar="SECONDS", min=0.001, help="That running answers have after SIGTERM.")]
MaxTokens = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Most new tokens of one answer; default: the context.")
]
MaxChoices = Annotated[int, typer.Option(metavar="N", min=1, help="Most answers, or moderated inputs, of one request.")]
MaxBody = Annotated[int, typer.Option(metavar="BYTES", min=1024, help="Longest request.")]
CorsOrigin = Annotated[
    str | None, typer.Option(metavar="ORIGIN[,ORIGIN…]", help="Web pages that may ask; default: none.")
]
AllowClientOverrides = Annotated[
    bool, typer.Option("--allow-client-overrides", help="Clients may ask for less protection than is served.")
]
LogPrompts = Annotated[bool, typer.Option("--log-prompts", help="Write prompts and answers into the log, too.")]
Playground = Annotated[
    bool | None,
    typer.Option(
        "--playground/--no-playground",
        help="A page where people see the routing; default: where only this machine can ask, and needs no key.",
    ),
]
TailUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Continue heads on an engine with the plain base: http://HOST:PORT/v1."),
]
TailModel = Annotated[str | None, typer.Option(metavar="NAME", help="What it calls the base; default: its one model.")]
TailApiKeyEnv = Annotated[str | None, typer.Option(metavar="VARIABLE", help="Environment variable with its API key.")]
TailRequests = Annotated[
    int, typer.Option(metavar="N", min=1, help="Most answers, waiting or in the making here and there.")
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that a hub model brings along.")]
