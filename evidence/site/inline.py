"""Figures inlined into pages."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup

from evidence.figures.style import INK, Drawn


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it."""

    stem: str
    title: str
    caption: str
    svg: Markup


def inline(figure: Drawn) -> Picture:
    """Return a figure for the page: text in the page's colour, ids that no other figure of the page has."""
    text = figure.svg.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Figures keep their proportions among each other: 10.4 inches fill the page, smaller ones do not grow to it.
    opening = text.index(">")
    sizes = dict(re.findall(r' (width|height)="([0-9.]+)pt"', text[:opening]))
    width = float(sizes["width"])
    head = re.sub(r' (width|height)="[^"]*"', "", text[:opening])
    text = f'{head} style="max-width:{width * 1.5:.0f}px;--readable:{width * 1.15:.0f}px"{text[opening:]}'
    text = text.replace(INK, "currentColor")
    # Images are named by their content: two colour bars alike would share an id that nothing refers to.
    text = re.sub(r' id="(image[0-9a-f]+)"', lambda m: m[0] if f"#{m[1]}" in text else "", text)
    text = re.sub(r'\bid="', f'id="{figure.stem}-', text)
    text = re.sub(r'href="#', f'href="#{figure.stem}-', text)
    text = re.sub(r"url\(#", f"url(#{figure.stem}-", text)
    # Safe: the only text from run folders that reaches an SVG is drawn as outlines, and comments are gone.
    return Picture(figure.stem, figure.title, figure.caption, Markup(text))
