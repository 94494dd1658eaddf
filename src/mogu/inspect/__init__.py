"""A look inside: what the routers make of one prompt and its answer, token by token, as a page."""

from mogu.inspect.page import render
from mogu.inspect.read import Reading, read

__all__ = ["Reading", "read", "render"]
