"""Where an adapter comes from, as a drawing: boxes in columns from left to right, joined by curves.

Only numbers: the template writes the SVG. Every box stands right of all that went before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from core.records.lineage import Edge, Lineage, Node

WIDTH, HEIGHT = 196, 50  # of a box
ACROSS, DOWN = 104, 22  # between boxes
MARGIN = 8
PLACES = {"adapter": "/admin/adapters/", "job": "/admin/jobs/", "file": "/admin/data/"}


@dataclass(frozen=True)
class Box:
    """One thing. x, y: its upper left corner. href: its page, if it has one."""

    node: Node
    x: int
    y: int
    href: str | None


@dataclass(frozen=True)
class Line:
    """A bond. path: an SVG path from the right of a box to the left of another. x, y: where its word stands."""

    edge: Edge
    source: str
    target: str
    path: str
    x: int
    y: int


@dataclass(frozen=True)
class Drawing:
    """Boxes in the order in which they are read, their bonds, and the size of it all."""

    boxes: list[Box]
    lines: list[Line]
    width: int
    height: int


def drawn(found: Lineage) -> Drawing:
    """Where everything of a lineage stands."""
    edges = [edge for edge in found.edges if edge.source in found.nodes and edge.target in found.nodes]
    columns = _columns(found.nodes, edges)
    tallest = max(map(len, columns))
    boxes = dict[str, Box]()
    for across, column in enumerate(columns):
        top = MARGIN + (tallest - len(column)) * (HEIGHT + DOWN) // 2
        for down, name in enumerate(column):
            node = found.nodes[name]
            x, y = MARGIN + across * (WIDTH + ACROSS), top + down * (HEIGHT + DOWN)
            boxes[name] = Box(node, x, y, _href(node))
    width = 2 * MARGIN + len(columns) * (WIDTH + ACROSS) - ACROSS
    height = 2 * MARGIN + tallest * (HEIGHT + DOWN) - DOWN
    return Drawing(list(boxes.values()), [_line(edge, boxes) for edge in edges], width, height)


def _columns(nodes: Mapping[str, Node], edges: list[Edge]) -> list[list[str]]:
    """Each node in the first column behind all its sources; within it, beside them. The graph has no circles."""
    sources: dict[str, list[str]] = {name: [] for name in nodes}
    for edge in edges:
        sources[edge.target].append(edge.source)
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:
        deeper = {name: max((depth[source] + 1 for source in before), default=0) for name, before in sources.items()}
        if deeper == depth:
            break
        depth = deeper
    # What begins a chain stands directly before what it is used for, and not at the far left.
    for name in nodes:
        later = [depth[edge.target] for edge in edges if edge.source == name]
        if later and not sources[name]:
            depth[name] = min(later) - 1
    columns: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    row = dict[str, float]()
    for name in sorted(nodes, key=lambda name: (depth[name], nodes[name].created_at or 0.0, name)):
        columns[depth[name]].append(name)
    for column in columns:
        column.sort(key=lambda name: _mean([row[source] for source in sources[name] if source in row]))
        row.update((name, number - len(column) / 2) for number, name in enumerate(column))
    return columns


def _line(edge: Edge, boxes: Mapping[str, Box]) -> Line:
    source, target = boxes[edge.source], boxes[edge.target]
    x, y = source.x + WIDTH, source.y + HEIGHT // 2
    to_x, to_y = target.x, target.y + HEIGHT // 2
    bend = (to_x - x) // 2
    path = f"M{x} {y}C{x + bend} {y} {to_x - bend} {to_y} {to_x} {to_y}"
    return Line(edge, source.node.name, target.node.name, path, x + 5, y - 5)


def _href(node: Node) -> str | None:
    return PLACES[node.kind] + node.id if node.kind in PLACES and not node.is_deleted else None


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0
