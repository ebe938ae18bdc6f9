"""Static HTML pages that hold all they show and ask nobody for anything."""

import base64
import html
from collections.abc import Iterable, Sequence

from torch import Tensor

from dreamkit.images import png

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
  body {{ max-width: 78rem; margin: 2rem auto; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; }}
  h1 {{ font-size: 1.4rem; }}
  h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
  .wide {{ overflow-x: auto; }}
  table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }}
  th, td {{ padding: .25rem .7rem .25rem 0; border-top: 1px solid color-mix(in srgb, currentcolor 20%, transparent);
    text-align: left; }}
  th {{ font-weight: 400; opacity: .7; }}
  figure {{ display: inline-block; margin: 0 .7rem 1rem 0; width: min-content; vertical-align: top; }}
  figcaption {{ font-size: .85rem; overflow-wrap: anywhere; }}
  img {{ display: block; }}
</style>
"""


def page(title: str, parts: Iterable[str]) -> bytes:
    """A page of a title, any text, and parts that are HTML already."""
    said = html.escape(title)
    return "\n".join([_HEAD.format(title=said), f"<h1>{said}</h1>", *parts, "</html>", ""]).encode()


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of any text."""
    lines = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    first = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return f'<div class="wide"><table><tr>{first}</tr>{"".join(lines)}</table></div>'


def figure(rgb: Tensor, caption: str, scale: float = 1.0) -> str:
    """A picture [3, H, W] in [0, 1], shown `scale` times as large, and any text under it."""
    data = base64.b64encode(png(rgb)).decode()
    size = f'width="{round(rgb.shape[2] * scale)}"'
    said = html.escape(caption)
    return (
        f'<figure><img {size} alt="{said}" src="data:image/png;base64,{data}"><figcaption>{said}</figcaption></figure>'
    )
