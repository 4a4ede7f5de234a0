"""The base model of a trainer process, opened once for all its jobs. Knows no job."""

from dataclasses import dataclass

import torch

from core.base.facts import BaseFacts
from core.base.load import OpenBase
from core.model import RoutedModel
from core.reading import with_reading
from core.settings import Settings
from core.specs.assignment import Assignment
from worker.reading import base_of


@dataclass(frozen=True, eq=False)
class Opened:
    """The frozen model as it came, as rows wear their effects on it, and as methods may know it."""

    base: OpenBase
    model: RoutedModel
    facts: BaseFacts

    @classmethod
    def of(cls, assignment: Assignment, settings: Settings) -> "Opened":
        """What the first job asks for, which is what all its company do. Raises UnusableBaseModel."""
        if settings.threads:
            torch.set_num_threads(settings.threads)
        base = base_of(assignment, settings)
        model = RoutedModel(base.model)
        return cls(base, model, with_reading(base.facts, model))
