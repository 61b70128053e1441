"""Parts of an HTML page that needs nothing but itself: no scripts, no other files; light or dark as the reader has it."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tasks.names import plain

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #667; --line: #d5d9de; --back: #fff; --mark: #e8f1fc; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e9; --faint: #99a; --line: #3a3f46; --back: #16181b; --mark: #1e3148; }
}
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--back); color: var(--ink); }
body { font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .6rem; font-size: 1.15rem; }
header p, summary, dt, figcaption { color: var(--faint); }
summary { cursor: pointer; padding: .3rem 0; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .7rem 1.5rem; margin: 0; }
dt { font-size: .85rem; overflow-wrap: anywhere; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.best { background: var(--mark); }
figure { margin: 0 0 1.5rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
"""


def document(title: str, said: str, sections: Mapping[str, str]) -> str:
    """A page: its title, a line below it, and the sections that are not empty."""
    body = "\n".join(f"<section>\n<h2>{escape(name)}</h2>\n{part}\n</section>" for name, part in sections.items() if part)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{escape(said)}</p>
</header>
{body}
</body>
</html>
"""


def escape(value: Any) -> str:
    """Text that is text, whatever it holds: no markup, no character that HTML forbids."""
    return html.escape(plain(str(value)))


def words(value: Any, depth: int = 9) -> str:
    """A value of JSON for a reader: 1,234; 0.9972; "a, b"; "width 3, depth 4"; "none" for nothing."""
    if value is None or value in ("", [], {}):
        return "none"
    if not depth:
        return "…"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}" if not value.is_integer() or abs(value) > 1e15 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {words(each, depth - 1)}" for name, each in value.items())
    return ", ".join(words(each, depth - 1) for each in value) if isinstance(value, list) else str(value)


def as_html(value: Any) -> str:
    """A value in HTML; a long one opens by a click."""
    text = words(value)
    if len(text) <= 200:
        return f'<span dir="auto">{escape(text)}</span>'
    return f"<details><summary>{escape(text[:80])}…</summary>{escape(text)}</details>"


def description_list(items: Iterable[tuple[str, Any]]) -> str:
    each = [f"<div><dt>{escape(name)}</dt><dd>{as_html(value)}</dd></div>" for name, value in items]
    return "<dl>\n" + "\n".join(each) + "\n</dl>" if each else ""


def html_table(rows: Sequence[Mapping[str, Any]], is_best: Callable[[Any], bool] = lambda row: False) -> str:
    """A row for each, a column for each name that any has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return ""
    numeric = {name: all(isinstance(row.get(name, 0), int | float) for row in rows) for name in names}

    def cell(tag: str, name: str, content: str) -> str:
        return f'<{tag} class="number">{content}</{tag}>' if numeric[name] else f"<{tag}>{content}</{tag}>"

    lines = ["<thead><tr>" + "".join(cell("th", name, escape(name)) for name in names) + "</tr></thead>\n<tbody>"]
    for row in rows:
        cells = "".join(cell("td", name, as_html(row[name]) if name in row else "") for name in names)
        lines.append(f'<tr class="best">{cells}</tr>' if is_best(row) else f"<tr>{cells}</tr>")
    return '<div class="wide">\n<table>\n' + "\n".join(lines) + "\n</tbody>\n</table>\n</div>"


def image(name: str, png: bytes) -> str:
    """A picture within the page, and its name."""
    source = base64.b64encode(png).decode()
    return f"""<figure>
<img alt="{escape(name)}" src="data:image/png;base64,{source}">
<figcaption>{escape(name)}</figcaption>
</figure>"""
