"""The one forward: a frozen base model whose every row may wear its own adapter. Trainer and engine both run it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from core.attention import NAME, RaggedBatch
from core.base.facts import linears_of
from core.base.nf4 import dense_weight
from core.cache import KVCache
from core.effects import Effect, KVPrefix, LowRank, norm_of
from core.embedding import embedded
from core.fitting import Shape, check
from core.frugal import make_frugal
from core.linear import OUTSIDE, Flight, Head, RoutedLinear, Switchboard, flight_of
from core.offload import run_again_from_host
from core.ops import choice
from core.ops.pool import RankPool
from core.routing import Routing, resident

# Families whose laws the tests hold. Another one may need only a line here, but a family that hides something from
# its attention function (sinks, shared or latent keys) would be silently wrong, so it must be tried first.
FAMILIES = frozenset(
    {"llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox"}
)
LEARNED_POSITIONS = frozenset({"gpt2"})  # these read their positions from a table, which ends


@dataclass(frozen=True, eq=False)
class Rows:
    """A ragged batch: B rows one after another, no padding."""

    ids: Tensor  # [N] int64; a negative one is a virtual token: -1 is virtual token 0 of the row's own soft prompt
    positions: Tensor  # [N] int64
    starts: tuple[int, ...]  # B + 1
    slots: tuple[int, ...] | None = None  # B: the cache slot of each row

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[int] | Tensor],
        *,
        first_positions: Sequence[int] | None = None,
        slots: Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> "Rows":
        """One batch of these rows, each of at least one token.

        first_positions: where each row starts to count, 0 if not said; Routing.first_positions() knows for rows with
        a prefix, the cache for rows that go on.
        """
        if not rows or not all(len(row) for row in rows):
            raise ValueError("a batch needs at least one row, and every row at least one token")
        firsts = [0] * len(rows) if first_positions is None else first_positions
        if len(firsts) != len(rows) or (slots is not None and len(slots) != len(rows)):
            raise ValueError(f"{len(rows)} rows need as many first positions and slots")
        starts, ids, positions = [0], [], []
        for row, first in zip(rows, firsts, strict=True):
            ids.append(torch.as_tensor(row, dtype=torch.long))
            positions.append(torch.arange(first, first + len(row)))
            starts.append(starts[-1] + len(row))
        taken = None if slots is None else tuple(slots)
        return cls(torch.cat(ids).to(device), torch.cat(positions).to(device), tuple(starts), taken)

    def __len__(self) -> int:
        return len(self.starts) - 1


class RoutedModel(nn.Module):
    """A Hugging Face model, frozen, whose linear layers ask the batch in flight what to add."""

    def __init__(self, base: PreTrainedModel, *, checkpointing: bool = False, offload: bool = False) -> None:
        """Freeze base, and from here on call it only through this.

        checkpointing: keep no activations of a layer but its input, and run the layer again in backward. offload: and
        have the inputs wait in host memory.

        Raises:
            ValueError: base is of a family whose laws are not tested.

        """
        super().__init__()
        family = base.config.model_type
        if family not in FAMILIES:
            raise ValueError(f"base models of type {family!r} are not supported; these are: {sorted(FAMILIES)}")
        # Evaluation mode for good: dropout belongs to adapters, and each row's own is drawn by its key.
        self.base = base
        self.base.requires_grad_(requires_grad=False)
        self.base.train(mode=False)
        self.base.set_attn_implementation(NAME)
        self.checkpointing = checkpointing
        make_frugal(base, checkpointing=checkpointing)
        self._board = Switchboard()
        self.sites = self._route()
        self.shape = self._shape()
        kernels = choice.has_kernels(self.device)
        self.pool = RankPool(device=self.device, dtype=self.dtype, is_for_kernels=kernels)
        self.packed_head: Tensor | None = None
        if checkpointing:
            self._checkpoint(offload=offload)

    def _route(self) -> dict[str, RoutedLinear]:
        sites = {name: RoutedLinear(name, module, self._board) for name, module in linears_of(self.base).items()}
        for name, site in sites.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self.base.get_submodule(parent), leaf, site)
        return sites

    def _shape(self) -> Shape:
        table = self.base.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        name = next(name for name, module in self.base.named_modules() if module is table)
        cache = KVCache.for_model(self, 1, 1).keys.shape
        return Shape(
            {name: site.widths for name, site in self.sites.items()},
            (name, table.num_embeddings, table.embedding_dim),
            (cache[0], cache[2], cache[4]),
        )

    def _checkpoint(self, *, offload: bool) -> None:
        self.base.activation_checkpointing_enable({"use_reentrant": False})
        for module in self.base.modules():
            # The library checkpoints only layers in training mode; their children, dropout among them, stay out of it.
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True
                if offload:
                    module._gradient_checkpointing_func = run_again_from_host  # type: ignore[assignment]  # noqa: SLF001

    @property
    def device(self) -> torch.device:
        """Where the base model is."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """What the base model computes in."""
        return self.base.dtype

    @property
    def head(self) -> Head:
        """The output head."""
        module = self.base.get_output_embeddings()  # type: ignore[no-untyped-call]
        softcap = getattr(self.base.config, "final_logit_softcapping", None)
        return Head(module.weight, getattr(module, "bias", None), softcap, self.packed_head)

    def train(self, mode: bool = True) -> "RoutedModel":  # noqa: ARG002, FBT001, FBT002 - nn.Module's signature
        """Nothing: a frozen model has no modes. What differs in training is in the routing."""
        return self

    @contextmanager
    def wearing(self, routing: Routing) -> Iterator[None]:
        """The batch wears its adapters inside this; with checkpointing, backward belongs inside too."""
        if self._board.routing is not None:
            raise RuntimeError("`wearing` is open already: one batch is in flight at a time")
        self._board.routing = routing
        try:
            yield
        finally:
            self._board.routing = self._board.flight = None

    @contextmanager
    def bare(self, starts: tuple[int, ...]) -> Iterator[None]:
        """Inside this, parts of the base may be called by themselves, on bare rows of these B + 1 bounds."""
        routing = Routing.of_rows([None] * (len(starts) - 1))
        with self.wearing(routing):
            self._board.flight = flight_of(routing, starts, self.pool)
            yield

    def forward(self, rows: Rows, cache: KVCache | None = None) -> Tensor:
        """The hidden states of every token, after the final norm: [N, H].

        Without a cache a row attends to itself, and to its prefix. With one, its keys and values are appended to its
        slot and it attends to all that the slot holds; nothing then carries gradients.

        Raises:
            RuntimeError: called outside `wearing`.
            ValueError: rows, routing, cache and base model do not fit one another.

        """
        routing = self._board.routing
        if routing is None:
            raise RuntimeError(OUTSIDE)
        if len(routing.slot_of_row) != len(rows):
            raise ValueError(f"the routing is of {len(routing.slot_of_row)} rows, the batch of {len(rows)}")
        if self.checkpointing and torch.is_grad_enabled() and self._board.flight is not None:
            raise RuntimeError("with checkpointing, one forward in each `wearing`: backward runs that one again")
        self._check_positions(rows)
        if cache is None:
            return self._run(rows, routing, RaggedBatch(rows.starts, self._prefixes(rows, routing)))
        if rows.slots is None:
            raise ValueError("with a cache every row needs a slot: Rows.of(..., slots=...)")
        lengths = [stop - start for start, stop in zip(rows.starts, rows.starts[1:], strict=False)]
        self._check_slots(rows.slots, routing, cache)
        firsts = tuple(cache.room(slot, n) for slot, n in zip(rows.slots, lengths, strict=True))
        with torch.no_grad():
            hidden = self._run(rows, routing, RaggedBatch(rows.starts, (), cache, rows.slots, firsts))
        for slot, n in zip(rows.slots, lengths, strict=True):
            cache.lengths[slot] += n
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """The output head, with the model's own soft-capping if it has any: [n, H] to [n, V]."""
        return self.head.logits(hidden)

    def resident(self, effect: Effect) -> Effect:
        """The serving form of an effect: checked against this model, on its device, cast to its type once.

        Raises:
            ValueError: the effect is not of this base model, or holds NaN or infinity.

        """
        self.check(effect)
        if isinstance(effect, LowRank) and effect.magnitude:
            effect = self._measured(effect)
        return resident(effect, device=self.device, dtype=self.dtype)

    def _measured(self, effect: LowRank) -> LowRank:
        """With the norms that its magnitudes are held against, where a file did not hold them."""
        found = {
            site: norm_of(dense_weight(self.sites[site].base), effect.a[site], effect.b[site], effect.scale[site])
            for site in effect.magnitude.keys() - effect.norm.keys()
        }
        return replace(effect, norm={**effect.norm, **found})

    def check(self, effect: Effect) -> None:
        """Raise ValueError if an effect does not fit this base model, or is not finite."""
        check(effect, self.shape)

    def step(self, ids: Tensor, positions: Tensor, flight: Flight, batch: RaggedBatch) -> Tensor:
        """As forward, of tokens [N] whose flight and batch stand ready, and which are words as they stand: [N, H].

        Reads no number off the device, so that the device may repeat it by itself. The cache's lengths stay.
        """
        with self.wearing(flight.routing), torch.no_grad():
            return self._through(self.base.get_input_embeddings()(ids), positions, flight, batch)

    def _run(self, rows: Rows, routing: Routing, batch: RaggedBatch) -> Tensor:
        words = embedded(self.base, self.shape.table[0], rows.ids, rows.starts, routing)
        return self._through(words, rows.positions, flight_of(routing, rows.starts, self.pool), batch)

    def _through(self, words: Tensor, positions: Tensor, flight: Flight, batch: RaggedBatch) -> Tensor:
        """The layers of the base: words [N, H] at positions [N] to hidden states [N, H]."""
        self._board.flight = flight
        out = self.base.base_model(
            inputs_embeds=words[None],
            position_ids=positions[None],
            attention_mask=None,
            use_cache=False,
            graft_batch=batch,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def _check_positions(self, rows: Rows) -> None:
        if self.base.config.model_type not in LEARNED_POSITIONS:
            return
        last, limit = int(rows.positions.max()), int(self.base.config.max_position_embeddings)
        if last >= limit:
            raise ValueError(
                f"a row reaches position {last}; this base model has learned {limit}, so {limit - 1} at most"
            )

    def _prefixes(self, rows: Rows, routing: Routing) -> tuple[KVPrefix | None, ...]:
        worn = [routing.of_row(row) for row in range(len(rows))]
        prefixes = tuple(e if isinstance(e, KVPrefix) else None for e in worn)
        for row, prefix in enumerate(prefixes):
            if prefix is not None and int(rows.positions[rows.starts[row]]) < prefix.keys.shape[1]:
                count = prefix.keys.shape[1]
                raise ValueError(f"row {row} wears a prefix of {count}, so its positions start at {count} or later")
        return prefixes

    def _check_slots(self, slots: Sequence[int], routing: Routing, cache: KVCache) -> None:
        if len(set(slots)) < len(slots):
            raise ValueError(f"slots {list(slots)}: each row needs a slot of its own")
        for row, slot in enumerate(slots):
            effect = routing.of_row(row)
            if cache.prefixes[slot] is not (effect if isinstance(effect, KVPrefix) else None):
                raise ValueError(f"slot {slot} does not hold the prefix that row {row} wears: put_prefix comes first")
