"""Where an adapter or a job comes from, as a drawing: boxes in columns from left to right, joined by curves.

Only numbers: the template writes the SVG. Every box stands right of all that went before it, and a dataset stands
before each job that used it, so that no curve runs behind a box that it has nothing to do with.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from core.records.lineage import Edge, Lineage, Node

WIDTH, HEIGHT = 196, 50  # of a box
ACROSS, DOWN = 104, 22  # between boxes
MARGIN = 8
PLACES = {"adapter": "/admin/adapters/", "job": "/admin/jobs/", "file": "/admin/data/"}

Key = tuple[str, str]  # of a box: its node's id and, of a dataset, the job's that it stands before


@dataclass(frozen=True)
class Box:
    """One thing. label: its name as it fits in. x, y: its upper left corner. href: its page, if it has one."""

    node: Node
    label: str
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
    """Boxes in the order in which they are read, their bonds, and the size of it all. is_cut: there is more."""

    boxes: list[Box]
    lines: list[Line]
    width: int
    height: int
    is_cut: bool


def drawn(found: Lineage) -> Drawing:
    """Where everything of a lineage stands."""
    edges = [edge for edge in found.edges if edge.source in found.nodes and edge.target in found.nodes]
    nodes = {(name, ""): node for name, node in found.nodes.items() if node.kind != "file"}
    ties = list[tuple[Key, Key, Edge]]()
    for edge in edges:
        node = found.nodes[edge.source]
        source = (edge.source, edge.target if node.kind == "file" else "")
        nodes[source] = node
        ties.append((source, (edge.target, ""), edge))
    columns = _columns(nodes, [(source, target) for source, target, _ in ties])
    tallest = max(map(len, columns))
    boxes = dict[Key, Box]()
    for across, column in enumerate(columns):
        top = MARGIN + (tallest - len(column)) * (HEIGHT + DOWN) // 2
        for down, key in enumerate(column):
            x, y = MARGIN + across * (WIDTH + ACROSS), top + down * (HEIGHT + DOWN)
            boxes[key] = Box(nodes[key], _label(nodes[key]), x, y, _href(nodes[key]))
    width = 2 * MARGIN + len(columns) * (WIDTH + ACROSS) - ACROSS
    height = 2 * MARGIN + tallest * (HEIGHT + DOWN) - DOWN
    lines = [_line(edge, boxes[source], boxes[target]) for source, target, edge in ties]
    return Drawing(list(boxes.values()), lines, width, height, found.is_cut)


def _columns(nodes: Mapping[Key, Node], ties: list[tuple[Key, Key]]) -> list[list[Key]]:
    """Each node in the first column behind all its sources; within it, beside them. The graph has no circles."""
    sources: dict[Key, list[Key]] = {key: [] for key in nodes}
    targets: dict[Key, list[Key]] = {key: [] for key in nodes}
    for source, target in ties:
        sources[target].append(source)
        targets[source].append(target)
    depth = _depths(sources)
    # What begins a chain stands directly before what it is used for, and not at the far left.
    for key, later in targets.items():
        if later and not sources[key]:
            depth[key] = min(depth[target] for target in later) - 1
    columns: list[list[Key]] = [[] for _ in range(max(depth.values()) + 1)]
    for key in sorted(nodes, key=lambda key: (nodes[key].kind == "file", nodes[key].created_at or 0.0, key)):
        columns[depth[key]].append(key)
    return columns


def _depths(sources: Mapping[Key, list[Key]]) -> dict[Key, int]:
    """Of each, how many ties the longest way to it has."""
    depth = dict.fromkeys(sources, 0)
    for _ in sources:
        deeper = {key: max((depth[source] + 1 for source in before), default=0) for key, before in sources.items()}
        if deeper == depth:
            break
        depth = deeper
    return depth


def _line(edge: Edge, source: Box, target: Box) -> Line:
    x, y = source.x + WIDTH, source.y + HEIGHT // 2
    to_x, to_y = target.x, target.y + HEIGHT // 2
    bend = (to_x - x) // 2
    path = f"M{x} {y}C{x + bend} {y} {to_x - bend} {to_y} {to_x} {to_y}"
    return Line(edge, source.node.name, target.node.name, path, x + 5, y - 5 if to_y >= y else y + 15)


def _label(node: Node) -> str:
    """Of a model's name ft:BASE:ORG:SUFFIX:… what tells it from others."""
    parts = node.name.split(":", 3)
    return parts[3].strip(":") if node.name.startswith("ft:") and len(parts) > 3 else node.name  # noqa: PLR2004


def _href(node: Node) -> str | None:
    return PLACES[node.kind] + node.id if node.kind in PLACES and not node.is_deleted else None
