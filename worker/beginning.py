"""A job's run at step 0, and how its learning rate is found where the job leaves that to us. Knows no report."""

from collections.abc import Iterator

import torch

from core import checkpoint
from core.adapter_files import read_zip
from core.data.batches import Corpus
from core.methods import METHODS
from core.preferences import Pairs
from core.rate_search import NoFiniteRate, Search
from core.run import Run
from core.specs.assignment import Assignment
from core.specs.rate_search import FoundRate
from core.specs.training import TrainSpec
from worker.opened import Opened
from worker.reading import reference_of, start_of
from worker.reasons import Diverged, UnusableMethodError


def new_run(assignment: Assignment, opened: Opened, corpus: Corpus | Pairs, spec: TrainSpec) -> Run:
    """The same spec always starts from the same numbers. Raises UnusableMethodError."""
    generator = torch.Generator().manual_seed(spec.seed)
    try:
        start = start_of(assignment.init_adapter)
        method = METHODS[spec.method.type](spec.method, opened.facts, generator=generator, **start)
        source = None
        if assignment.continue_from is not None:
            source = read_zip(assignment.continue_from)
            method.continue_from(source)
        reference = reference_of(source, spec, opened.model)
    except ValueError as error:
        raise UnusableMethodError(str(error)) from error
    return Run(spec, method.to(opened.base.device), corpus, reference=reference)


def rate_kept(spec: TrainSpec, kept: checkpoint.Checkpoint | None) -> FoundRate | None:
    """What an earlier attempt of this search found, as its checkpoint says; None where it did not come so far."""
    said = kept and kept.facts["spec"].get("rate_search")
    return FoundRate.model_validate(said["found"]) if spec.is_searching and said and said["found"] else None


class RateSearch:
    """The search of one job. Go through steps() to its end; then found is there."""

    def __init__(
        self, assignment: Assignment, opened: Opened, corpus: Corpus | Pairs, validation: Corpus | Pairs | None
    ) -> None:
        spec = assignment.spec

        def candidate(spec: TrainSpec, rows: Corpus | Pairs) -> Run:
            return new_run(assignment, opened, rows, spec)

        self._search = Search(opened.model, spec, candidate, corpus, validation)

    @property
    def found(self) -> FoundRate:
        """At the end."""
        return self._search.found

    def steps(self) -> Iterator[None]:
        """Yields between any two of its steps. Raises Diverged where no candidate's loss was finite."""
        try:
            for _ in self._search.run():
                yield
        except NoFiniteRate as error:
            raise Diverged(str(error)) from error
