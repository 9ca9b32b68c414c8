"""An HTML document in one file that may load nothing: what runs and what styles it is named by its digest."""

from __future__ import annotations

import base64
import hashlib

from ioptim.report.html import Child, Html, el, text, verbatim
from ioptim.report.plot import CANVAS
from ioptim.report.script import DRAW, NOT_INSTALLED, plotly_js, style_guards
from ioptim.report.style import CSS

_PLOTLY_STYLE = "/* plotly.js adds its rules here */"
"""plotly.js looks for a style element of this name; one that it made itself would be refused by the policy."""


def document(title: str, *body: Child) -> str:
    """The page. Holds plotly.js only where it has a chart to draw."""
    content = text(*body)
    scripts = [source for source in (plotly_js(), DRAW) if source] if CANVAS in content else []
    styles = [CSS, _PLOTLY_STYLE] if scripts else [CSS]
    guards = [el("template", id=name) for name in style_guards()] if scripts else []
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=_policy(scripts, styles)),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        verbatim("style", CSS),
        verbatim("style", _PLOTLY_STYLE, id="plotly.js-style-global") if scripts else None,
    )
    shown = el("body", content, guards, [verbatim("script", each) for each in scripts])
    return f"<!doctype html>\n{el('html', head, shown, lang='en')}\n"


def without_charts(content: str) -> Html | None:
    """Why the figures of this content have no chart, and how to get them; nothing where they are drawn or there is none."""
    return el("p", NOT_INSTALLED, class_="soft", role="note") if plotly_js() is None and "<figure" in content else None


def _policy(scripts: list[str], styles: list[str]) -> str:
    """No request at all (`connect-src` falls back to `default-src`), no style attribute, no script but these."""
    parts = ["default-src 'none'", f"style-src {' '.join(map(_digest, styles))}", "base-uri 'none'", "form-action 'none'"]
    if scripts:
        parts.insert(1, f"script-src {' '.join(map(_digest, scripts))}")
    return "; ".join(parts)


def _digest(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
