"""The base model of a trainer process, opened once for all its jobs. Knows no job."""

from dataclasses import dataclass, replace

import torch

from core.base.facts import BaseFacts
from core.base.load import OpenBase
from core.division import divide, without_weights
from core.model import RoutedModel
from core.reading import with_reading
from core.settings import Settings
from core.specs.assignment import Assignment
from core.team import Team
from worker.allocator import give_back_large_blocks
from worker.reading import base_of


@dataclass(frozen=True, eq=False)
class Opened:
    """The frozen model as it came, as rows wear their effects on it, and as methods may know it."""

    base: OpenBase
    model: RoutedModel
    facts: BaseFacts

    @classmethod
    def of(cls, assignment: Assignment, settings: Settings) -> "Opened":
        """What the first job asks for, which is what all its company do. Raises UnusableBaseModel.

        No layer of a base that is to be divided is run again: its processes would gather layers in different orders.
        """
        if settings.threads:
            torch.set_num_threads(settings.threads)
        base, spec = base_of(assignment, settings), assignment.spec
        if spec.activation_checkpointing and base.device.type == "cpu":
            give_back_large_blocks()
        model = RoutedModel(
            base.model,
            checkpointing=spec.activation_checkpointing and not settings.divide_base,
            offload=spec.activation_offload and base.device.type == "cuda",
        )
        return cls(base, model, with_reading(base.facts, model))

    @classmethod
    def with_team(cls, assignment: Assignment, settings: Settings, team: Team) -> "Opened":
        """The same in every process of a team, at the leader's word.

        Raises, in everyone: UnusableBaseModel or what else it was here; RuntimeError where it went well here alone.
        """
        if team.is_leader:
            team.tell(assignment.model_dump_json())
        try:
            opened = cls.of(assignment, settings)
        except Exception as error:
            team.compare(repr(error))
            raise
        refusals = {rank: said for rank, said in enumerate(team.compare("")) if said}
        if refusals:
            raise RuntimeError(f"the base model could be opened, but not by these processes of the team: {refusals}")
        return opened.divided(team) if settings.divide_base else opened

    def divided(self, team: Team) -> "Opened":
        """The same, of which this process keeps its part alone."""
        _ = self.base.quantisation  # told of the adapter when all is done; it is a checksum of the whole
        divide(self.model, team)
        return replace(self, facts=without_weights(self.facts))
