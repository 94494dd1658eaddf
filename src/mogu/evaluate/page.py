"""One HTML file that needs no network: style and script inside, and a content policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import xml.etree.ElementTree as ET

from mogu.evaluate.svg import Child, element


def html_page(title: str, style: str, *main: Child, data: Child = None, script: str | None = None) -> str:
    """The whole page.

    Args:
        title: Of the window.
        style: CSS.
        *main: What the page shows.
        data: An element behind it, for the script.
        script: JavaScript; the policy allows this text only.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    if script is not None:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    page = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("title", title),
            element("style", style),
        ),
        element("body", element("main", *main), data, None if script is None else element("script", script)),
        lang="en",
    )
    return "<!doctype html>\n" + ET.tostring(page, encoding="unicode", method="html") + "\n"
