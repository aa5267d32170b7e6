"""Draws docs/architecture/*.svg from the imports of the code: `python docs/architecture.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("adamp", "tasks", "evidence", "launch", "scripts", "benchmarks")
Graph = dict[str, set[str]]  # name -> the names it imports


class Drawing(NamedTuple):
    """A picture of the imports inside a package ("": between all); packages in `split` are drawn in parts."""

    name: str
    inside: str = ""
    split: tuple[str, ...] = ()


DRAWINGS = (
    Drawing("rooms", split=("tasks",)),
    Drawing("adamp", "adamp", split=("adamp.hooks", "adamp.probes", "adamp.step")),
    Drawing("engine", "tasks.engine"),
    Drawing("evidence", "evidence"),
)

HEIGHT, GAP_X, GAP_Y, LETTER = 32, 20, 48, 7.6  # of a box, between boxes, and of a letter, in pixels


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports when it runs; `from a import b` gives a.b, types alone nothing."""
    package = list(path.relative_to(ROOT).parent.parts)
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def room_of(module: str, drawing: Drawing) -> str | None:
    """Return the box of a module in a drawing, None if it has none."""
    if drawing.inside and not module.startswith(f"{drawing.inside}."):
        return None
    parts = module.split(".")
    outside = drawing.inside.count(".") + 1 if drawing.inside else 0
    end = outside + 1
    while end <= len(parts) and ".".join(parts[:end]) in drawing.split:
        end += 1
    return ".".join(parts[outside:end]) if end <= len(parts) else None


def read_graph(drawing: Drawing) -> Graph:
    """Return which rooms of a drawing import which."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    rooms = {module: room for module in paths if (room := room_of(module, drawing))}
    graph: Graph = {room: set() for room in rooms.values()}
    for module, room in rooms.items():
        for name in imports_of(paths[module]):
            while name and name not in paths:  # what is imported may be a name in a module
                name = name.rpartition(".")[0]
            if rooms.get(name, room) != room:
                graph[room].add(rooms[name])
    return graph


def bottom_up(graph: Graph) -> list[str]:
    """Return the rooms, what is imported first; out of a circle comes the one with the fewest imports left."""
    order: list[str] = []
    left = set(graph)
    while left:
        importers = {room: sum(room in graph[other] for other in left) for room in left}
        order.append(min(left, key=lambda room: (len(graph[room] & left), -importers[room], room)))
        left.remove(order[-1])
    return order


def without_detours(graph: Graph, order: list[str]) -> Graph:
    """Return the graph without the arrows that a longer way implies; `order` has what is imported first."""
    below: Graph = {}
    kept: Graph = {}
    for room in order:
        indirect = set().union(*(below[other] for other in graph[room]))
        kept[room] = graph[room] - indirect
        below[room] = graph[room] | indirect
    return kept


def layered(graph: Graph, order: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the rows of a layered drawing from top to bottom, and the way of each arrow through them.

    An arrow over several rows passes an empty box in each; the rows are sorted by the mean place of a box's neighbours
    (Sugiyama et al., "Methods for Visual Understanding of Hierarchical System Structures", 1981).
    """
    level: dict[str, int] = {}
    for room in order:
        level[room] = 1 + max((level[other] for other in graph[room]), default=-1)
    rows: list[list[str]] = [sorted(r for r in order if level[r] == k) for k in range(max(level.values()) + 1)]
    ways = []
    for room in sorted(graph):
        for other in sorted(graph[room]):
            passed = [f"{room}>{other}@{k}" for k in range(level[room] - 1, level[other], -1)]
            for box in passed:
                rows[int(box.rpartition("@")[2])].append(box)
            ways.append([room, *passed, other])
    neighbours: dict[str, list[str]] = {box: [] for row in rows for box in row}
    for way in ways:
        for upper, lower in pairwise(way):
            neighbours[upper].append(lower)
            neighbours[lower].append(upper)
    for _ in range(24):
        for row in [*rows, *reversed(rows)]:
            place = {box: (i + 0.5) / len(r) for r in rows for i, box in enumerate(r)}
            means = {b: sum(place[n] for n in neighbours[b]) / max(len(neighbours[b]), 1) for b in row}
            row.sort(key=lambda box: (means[box], box))
    return rows[::-1], ways


def draw(graph: Graph) -> str:
    """Return an SVG picture: who imports stands above what is imported; arrows that close a circle are red."""
    order = bottom_up(graph)
    downward = {room: graph[room] & set(order[:i]) for i, room in enumerate(order)}
    upward = [[room, other] for room in order for other in sorted(graph[room] - downward[room])]
    rows, ways = layered(without_detours(downward, order), order)
    size = {box: 14.0 if "@" in box else LETTER * len(box) + 18 for row in rows for box in row}
    width = max(sum(size[box] + GAP_X for box in row) for row in rows) + GAP_X
    centre: dict[str, tuple[float, float]] = {}
    for k, row in enumerate(rows):
        gap = (width - sum(size[box] for box in row)) / (len(row) + 1)
        x = gap
        for box in row:
            centre[box] = (x + size[box] / 2, GAP_X + HEIGHT / 2 + k * (HEIGHT + GAP_Y))
            x += size[box] + gap
    height = 2 * GAP_X + len(rows) * (HEIGHT + GAP_Y) - GAP_Y
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        'font-family="monospace">',
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
        '<path d="M0 0 8 4 0 8z" fill="#567"/></marker>',
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#fff"/>',
    ]
    for way in [*ways, *upward]:
        colour, down = ("#c22", -1) if way in upward else ("#567", 1)
        path = f"M{centre[way[0]][0]:.0f} {centre[way[0]][1] + down * HEIGHT / 2:.0f}"
        for start, end in pairwise(way):
            (x0, y0), (x1, y1) = centre[start], centre[end]
            y0, y1 = y0 + down * HEIGHT / 2, y1 - down * HEIGHT / 2
            path += f"C{x0:.0f} {(y0 + y1) / 2:.0f} {x1:.0f} {(y0 + y1) / 2:.0f} {x1:.0f} {y1:.0f}"
            path += f"V{y1 + HEIGHT:.0f}" if "@" in end else ""
        lines.append(f'<path d="{path}" fill="none" stroke="{colour}" marker-end="url(#tip)"/>')
    for box, (x, y) in centre.items():
        if "@" not in box:
            left, top = x - size[box] / 2, y - HEIGHT / 2
            lines += [
                f'<rect x="{left:.0f}" y="{top:.0f}" width="{size[box]:.0f}" height="{HEIGHT}" rx="5" fill="#eef3fa" '
                'stroke="#567"/>',
                f'<text x="{x:.0f}" y="{y + 4:.0f}" font-size="12.5" text-anchor="middle" fill="#123">{box}</text>',
            ]
    return "\n".join([*lines, "</svg>", ""])


def drawings() -> dict[Path, str]:
    """Return the file of each drawing and what it must hold."""
    graphs = {ROOT / "docs" / "architecture" / f"{drawing.name}.svg": read_graph(drawing) for drawing in DRAWINGS}
    return {path: draw(graph) for path, graph in graphs.items() if graph}


if __name__ == "__main__":
    for path, text in drawings().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
