"""One job in training: its method, its optimiser, and where in its data it stands. Knows no model and no other run.

Everything that a later step depends on is in state(), or follows from the spec: the order of the rows is a function
of (seed, epoch), dropout of (seed, step, row), the learning rate of the step. So a run that was stopped anywhere and
loaded again ends with the same bits. Weights and moments are fp32 whatever the base computes in: in bf16 most entries
of an adapter could not move by an Adam-sized step.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.data.batches import Corpus, order
from core.effects import Effect, Ensemble
from core.methods import Method
from core.optimisers import Group, in_force, load_state, optimiser_of, state_of
from core.preferences import Pairs, Preference
from core.schedule import learning_rate
from core.specs.training import Optimizer, TrainSpec


class Run:
    """A job's trainable state. One step learns from spec.batch_size rows, or from what the epoch has left."""

    def __init__(
        self, spec: TrainSpec, method: Method, corpus: Corpus | Pairs, *, reference: Effect | Ensemble | None = None
    ) -> None:
        """Takes the method as its own. reference: of a DPO run, what to be held to; None is the bare base model.

        Raises:
            ValueError: a corpus without rows, or not of pairs where DPO learns from them; parameters not in fp32.

        """
        if isinstance(corpus, Pairs) != (spec.dpo is not None):
            raise ValueError("dpo learns from pairs, and only dpo does: the corpus and the spec do not fit")
        if not len(corpus):
            raise ValueError("there is nothing to train on: the training file has no rows")
        if found := {p.dtype for p in method.parameters()} - {torch.float32}:
            raise ValueError(f"an adapter is trained in torch.float32, whatever its base computes in; found {found}")
        self.spec = spec
        self.method = method
        self.corpus = corpus
        self.preference = None if spec.dpo is None else Preference(spec.dpo.beta, reference)
        self.steps_per_epoch = -(-len(corpus) // spec.batch_size)
        self.total_steps = self.steps_per_epoch * spec.n_epochs
        groups = method.groups()
        self.parameters = [p for group in groups for p in group.parameters]
        self._bundles = _bundles(groups)
        self.optimiser = optimiser_of(spec.optimizer, groups, weight_decay=spec.weight_decay)
        self.step = 0  # steps done, skipped ones included
        self.trained_tokens = 0
        self.skipped = 0  # steps whose loss or gradient was not finite
        self.skipped_in_a_row = 0
        self.rate_factor = 1.0  # of the learning rate; halved by a roll-back
        self.is_stopped = False  # before its last step, because it no longer gained
        self.error: Exception | None = None  # what ended this run alone
        self._order: tuple[tuple[int, int, int], NDArray[np.int64]] | None = None  # of which epoch, and its rows

    @property
    def _identity(self) -> dict[str, Any]:
        """What a state must share with its run. How much goes forward at once changes nothing but memory."""
        return self.spec.model_dump(mode="json", exclude={"tokens_per_batch"})

    @property
    def is_active(self) -> bool:
        """Whether a step is still to be made."""
        return self.error is None and not self.is_stopped and self.step < self.total_steps

    @property
    def optimizer_in_force(self) -> Optimizer:
        """What the optimiser of the spec comes to on this run's device."""
        return in_force(self.spec.optimizer, self.parameters[0].device)

    @property
    def epoch(self) -> float:
        """How often the data has been seen so far."""
        return self.step / self.steps_per_epoch

    @property
    def is_at_epoch_end(self) -> bool:
        """Whether the step just done was its epoch's last."""
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    @property
    def is_sound(self) -> bool:
        """Whether this is a state to go back to: the last step was finite, and so are all weights."""
        return self.skipped_in_a_row == 0 and self.has_finite_weights

    @property
    def has_finite_weights(self) -> bool:
        """Whether no parameter is NaN or infinite."""
        return bool(torch.nn.utils.get_total_norm(self.parameters, math.inf).isfinite())

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.rate_factor * learning_rate(self.spec, self.step + 1, self.total_steps)

    def forward_at_most(self, tokens: int) -> None:
        """From now on no more tokens go forward at once. What a step learns stays the same."""
        fewer = min(tokens, self.spec.tokens_per_batch)
        self.spec = self.spec.model_copy(update={"tokens_per_batch": fewer})

    def next_rows(self) -> list[int]:
        """Which rows of the corpus the next step learns from."""
        epoch, turn = divmod(self.step, self.steps_per_epoch)
        # Kept by each run, whatever the number of its neighbours: drawn anew at every step it would be what takes long.
        drawn = (len(self.corpus), self.spec.seed, epoch)
        if self._order is None or self._order[0] != drawn:
            self._order = drawn, order(*drawn)
        start = turn * self.spec.batch_size
        rows: list[int] = self._order[1][start : start + self.spec.batch_size].tolist()
        return rows

    def update(self, loss: float) -> float:
        """Ends a step of this loss, the gradients in place, and returns their norm before clipping.

        Where the loss or the norm is not finite the step is skipped: it counts, and nothing moves.
        """
        penalty = self.method.penalty()
        if penalty.requires_grad:
            penalty.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        limit = self.spec.max_grad_norm
        norm = math.hypot(*(float(torch.nn.utils.clip_grad_norm_(bundle, limit)) for bundle in self._bundles))
        rate = self.learning_rate
        self.step += 1
        if math.isfinite(loss) and math.isfinite(norm):
            for group in self.optimiser.param_groups:
                group["lr"] = rate * group["rate_factor"]
            self.optimiser.step()
            self.method.after_step(self.step, self.total_steps)
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        self.optimiser.zero_grad()
        return norm

    def roll_back(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes back to what state() once said, from now on with half the learning rate of then."""
        self.load(tensors, facts)
        self.rate_factor *= 0.5
        self.skipped_in_a_row = 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and facts that JSON can hold: all that load() needs to go on from here."""
        tensors = {f"method.{name}": tensor for name, tensor in self.method.state_dict().items()}
        for number, moments in state_of(self.optimiser).items():
            tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in moments.items()}
        facts = {name: getattr(self, name) for name in _COUNTERS}
        return tensors, facts | {"is_stopped": self.is_stopped, "spec": self._identity}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on from what state() said; what others keep beside it is left to them.

        Raises ValueError, the run unchanged, for the state of another spec.
        """
        if not self._is_of_this_spec(facts["spec"]):
            raise ValueError("this checkpoint belongs to another training spec")
        weights: dict[str, Tensor] = {}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "method":
                weights[rest] = tensor
                continue
            if kind == "optimiser":
                number, _, moment = rest.partition(".")
                moments.setdefault(int(number), {})[moment] = tensor
        self.method.load_state_dict(weights)
        load_state(self.optimiser, moments)
        for counter in _COUNTERS:
            setattr(self, counter, facts[counter])
        self.is_stopped = bool(facts.get("is_stopped", False))  # older states do not say

    def _is_of_this_spec(self, identity: Mapping[str, Any]) -> bool:
        """A state of before a field was thought of is of a spec that has the field's default."""
        try:
            theirs = TrainSpec.model_validate({**identity, "tokens_per_batch": self.spec.tokens_per_batch})
        except ValueError:
            return False
        return theirs == self.spec


_COUNTERS = ("step", "trained_tokens", "skipped", "skipped_in_a_row", "rate_factor")


def _bundles(groups: Sequence[Group]) -> list[list[nn.Parameter]]:
    """What is clipped together: each group that is clipped alone, and all others as one."""
    together = [parameter for group in groups if not group.is_clipped_alone for parameter in group.parameters]
    alone = [list(group.parameters) for group in groups if group.is_clipped_alone]
    return [*([together] if together else []), *alone]
