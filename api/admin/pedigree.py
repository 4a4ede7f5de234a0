"""A lineage as columns to be drawn: whatever came before stands to the left of what came of it."""

from dataclasses import dataclass

from core.records.lineage import Bond, Lineage, Node

PLACES = {"job": "/admin/jobs/", "adapter": "/admin/adapters/", "file": "/admin/data/"}
BONDS: dict[Bond, str] = {
    "trained_on": "learned from {name}",
    "validated_on": "validated on {name}",
    "made": "made by {name}",
    "continued_from": "goes on from {name}",
    "started_from": "starts from {name}",
    "retry_of": "the same again as {name}",
}


@dataclass(frozen=True)
class Kin:
    """One thing of a lineage. came: how it came of each thing before it, and that thing's name."""

    node: Node
    came: tuple[tuple[Bond, str], ...]

    @property
    def place(self) -> str | None:
        """Its page, if it has one and is still there."""
        return None if self.node.is_deleted or self.node.kind not in PLACES else PLACES[self.node.kind] + self.node.id


def columns(found: Lineage) -> list[list[Kin]]:
    """Each thing once, one column behind the last of those that it came of; within a column oldest first."""
    depth = dict.fromkeys(found.nodes, 0)
    for _ in found.nodes:  # a path is never longer than there are nodes
        for edge in found.edges:
            if edge.source in depth and edge.target in depth:
                depth[edge.target] = max(depth[edge.target], depth[edge.source] + 1)
    drawn: list[list[Kin]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in sorted(found.nodes.values(), key=lambda node: node.created_at or 0.0):
        drawn[depth[node.id]].append(Kin(node, _came(found, node)))
    return drawn


def _came(found: Lineage, node: Node) -> tuple[tuple[Bond, str], ...]:
    edges = [edge for edge in found.edges if edge.target == node.id and edge.source in found.nodes]
    return tuple((edge.bond, found.nodes[edge.source].name) for edge in edges)
