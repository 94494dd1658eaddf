"""The playground: a static page over the API, for people who want to see what the routers do."""

from __future__ import annotations

from importlib import resources
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from mogu.serve.settings import Settings

PATH = "/playground"
SETTINGS = f"{PATH}/settings"
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    # Nothing but our own files and our own API; no script or style inside the page, and no text that becomes markup.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # an updated server has an updated page
}


def playground(settings: Settings) -> APIRouter:
    """The page, its files, and what it must know of the server."""
    router = APIRouter(include_in_schema=False)
    folder = resources.files("mogu.serve") / "playground"
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES}
    index = files.pop("index.html")

    @router.get(PATH)
    async def page() -> Response:
        return Response(index, media_type="text/html", headers=HEADERS)

    @router.get(SETTINGS)
    async def about() -> Response:
        return JSONResponse(_about(settings), headers={"Cache-Control": "no-store"})

    def serve(name: str, content: bytes) -> None:
        kind = _TYPES[name.rpartition(".")[2]]

        async def file() -> Response:
            return Response(content, media_type=kind, headers=HEADERS)

        router.add_api_route(f"{PATH}/{name}", file)

    for name, content in files.items():
        serve(name, content)
    return router


def _about(settings: Settings) -> dict[str, Any]:
    served = settings.served
    return {
        "model": served.name,
        "layers": list(served.layers),
        "routed_tokens": served.routed_tokens,
        "handover": served.handover,
        "risk_threshold": served.risk_threshold,
        "calibrated": served.calibrated,
        "dial": settings.dial,
        "allow_overrides": settings.allow_overrides,
        "max_tokens": settings.max_tokens,
    }
