"""HTML that is escaped by construction: a plain string is always text, only `el` makes markup."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

VOID = {"br", "meta", "line", "rect", "circle", "path"}


class Html(str):
    """Markup that `el` made. Everything else is text and is escaped."""

    __slots__ = ()


Child = Html | str | float | None | Iterable["Child"]


def el(tag: str, *children: Child, **attributes: object) -> Html:
    """`<tag attributes>children</tag>`. `class_` is class, other underscores are hyphens; None and False leave an attribute out."""
    written = "".join(_attribute(name, value) for name, value in attributes.items() if value is not None and value is not False)
    if tag in VOID and not children:
        return Html(f"<{tag}{written}>" if tag in ("br", "meta") else f"<{tag}{written}/>")
    return Html(f"<{tag}{written}>{text(*children)}</{tag}>")


def text(*children: Child) -> Html:
    """Several children without an element around them."""
    return Html("".join(_child(child) for child in children))


def scroll(table: Html, label: str) -> Html:
    """A wide table scrolls by itself, by keyboard too, and leaves the page as wide as it is."""
    return el("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def data(value: Any) -> Html:
    """A JSON block for the page's script to read. It runs nothing, and no text in it can end it."""
    written = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return Html(f'<script type="application/json">{written}</script>')


def verbatim(tag: str, content: str, **attributes: object) -> Html:
    """A `style` or `script` of our own or of plotly.js; its content is the one that is not escaped."""
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    return Html(f"<{tag}{written}>{content}</{tag}>")


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str | int | float):
        return escape(str(child))
    return "".join(_child(each) for each in child)


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
