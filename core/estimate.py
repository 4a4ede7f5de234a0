"""What a run will take, before anything loads: tokens, steps, seconds, memory, the adapter's size. Pure arithmetic.

At the peak, which is the end of the forward of the largest micro-batch (N tokens, n of them learned, element size e):

base weights   (linear weights) * e, in NF4 4.127 bits each; the embeddings, and a head of its own, V * H * e
adapter        trainable parameters * (4 weight + 4 gradient + moments) bytes, and what the method keeps beside them
activations    what backward needs: N * L * H * e, N * (sum of all sites' outputs) * e, N * (inputs of the adapted
               sites) * e, 4 * N * (sum of ranks), and of attention (sum over rows of T^2) * L * heads * 4, each times
               a constant; a constant is 0 where that part is not kept. With checkpointing N * L * H * e, each layer's
               input, and one layer's share, 1 / L, of all these parts; where the inputs wait in host memory 1 / L of
               them too
loss head      min(CHUNK, n) * V * 4 bytes, times a constant
process        interpreter, libraries, allocator: a constant of the device; another for bitsandbytes, which a base in
               4 bits and some optimisers load
loading        what opening the base takes beyond all that, if it does: its file (2 bytes a parameter) and its weights
               before they are put into 4 bits, (all parameters) * e, stand side by side

The constants stand in one table, CONSTANTS of core/measured_constants.py, which benchmarks/estimates.py refits from
measured peaks. A search of the learning rate has the adapter's bytes for each candidate. Of pairs, what the answers are
held to goes forward before them and leaves nothing.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from core.adapter_sizes import kept_parameters, trained_parameters, worn_sites, written_parameters
from core.measured_constants import CONSTANTS, TOO_HIGH, TOO_LOW, Constants
from core.pace import training_s
from core.search_cost import cost_of, runs_at_once, with_candidates
from core.specs.estimate import Advice, Amount, BaseShape, Basis, Device, Estimate, Memory
from core.specs.method import AdaLoraSpec, LoraSpec
from core.specs.training import Optimizer, TrainSpec

CHUNK = 256  # tokens whose logits exist at once: core/losses.py, which this cannot import
FILE_BYTES = 2  # of a parameter in the folder that core/base/prepare.py makes
NF4_BITS = 4.127  # a number, with its scale in double quantisation
MOMENT_BYTES: Mapping[Optimizer, float] = {
    "adamw": 8,
    "adamw_8bit": 2.1,
    "paged_adamw_32bit": 8,
    "paged_adamw_8bit": 2.1,
    "adafactor": 0.1,
}
OF_BITSANDBYTES: frozenset[Optimizer] = frozenset({"adamw_8bit", "paged_adamw_8bit"})  # on a CPU, which pages nothing
FEWEST_TOKENS = 64  # of one forward: a worker halves no further
SHORTEST_LENGTH = 32  # to which rows are advised to be cut
CLOSE = "Whether this fits its device is within the error of the estimate: it may run out of memory on the way."
# Factor either way between which the time is said to lie.
PACE_SPREAD: Mapping[Basis, float] = {"jobs": 1.25, "device": 2.0, "default": 4.0}
CHECKPOINT_HEADER_BYTES = 4096  # an adapter's zip beside its numbers: config, card, names
BYTES_PER_TENSOR = 130  # of a safetensors header


def estimate(
    shape: BaseShape,
    spec: TrainSpec,
    amount: Amount,
    device: Device | None,
    *,
    tokens_per_s: float | None = None,
    constants: Constants | None = None,
) -> Estimate:
    """Of one run by itself. tokens_per_s: the pace of earlier jobs of this base and method, where there were any.

    Raises ValueError where the method names a layer that this base has not.
    """
    known = constants or CONSTANTS[device.kind if device else "cpu"]
    memory = memory_of(shape, spec, amount, known)
    steps = -(-amount.n_examples // spec.batch_size) * spec.n_epochs
    trained_s, validated_s = training_s(shape, spec, amount, tokens_per_s or 0.0, known)
    search = cost_of(spec, amount, trained_s)
    seconds = known.opening_s + trained_s + validated_s + (search.seconds if search else 0.0)
    basis = _basis(shape, tokens_per_s)
    spread = PACE_SPREAD[basis]
    least, most = memory_range(memory.total)
    fits = None if device is None else least <= device.memory_bytes
    return Estimate(
        tokens=amount.tokens * spec.n_epochs,
        learned_tokens=amount.learned_tokens * spec.n_epochs,
        validation_tokens=amount.validation_tokens,
        steps=steps,
        seconds=round(seconds, 1),
        seconds_range=(round(seconds / spread, 1), round(seconds * spread, 1)),
        seconds_basis=basis,
        memory=memory,
        activation_checkpointing=spec.activation_checkpointing,
        activation_offload=spec.activation_offload,
        memory_range=(least, most),
        adapter_bytes=adapter_bytes(shape, spec),
        trainable_parameters=trained_parameters(shape, spec.method),
        device=device,
        fits=fits,
        warning=CLOSE if device is not None and least <= device.memory_bytes < most else None,
        advice=()
        if device is None or most <= device.memory_bytes
        else tuple(advice(shape, spec, amount, device, known)),
        rate_search=search,
    )


def _basis(shape: BaseShape, tokens_per_s: float | None) -> Basis:
    if tokens_per_s is not None:
        return "jobs"
    return "default" if shape.products_per_s is None else "device"


def memory_range(total: int) -> tuple[int, int]:
    """Between which bytes the peak lies that was foretold as total, if it errs no more than what was measured."""
    return round(total / (1 + TOO_HIGH)), round(total / (1 - TOO_LOW))


def memory_of(shape: BaseShape, spec: TrainSpec, amount: Amount, constants: Constants) -> Memory:
    """Bytes at the peak, as this module's head says. Raises ValueError as estimate does."""
    values = parts(shape, spec, amount)
    terms = {
        "base_weights": round(values["base"]),
        "adapter": round(constants.adapter * values["adapter"]),
        "activations": round(_activations(shape, spec, values, constants)),
        "loss_head": round(constants.head * values["head"]),
        "process": round(constants.process + (constants.bitsandbytes if needs_bitsandbytes(spec) else 0.0)),
    }
    opened = terms["process"] + (shape.linear_parameters + shape.table_parameters) * (FILE_BYTES + shape.value_bytes)
    terms["loading"] = max(0, round(opened) - sum(terms.values()))
    return Memory(**terms, total=sum(terms.values()))


def needs_bitsandbytes(spec: TrainSpec) -> bool:
    """Whether a trainer of this job loads that library."""
    return spec.method.base_precision == "nf4" or spec.optimizer in OF_BITSANDBYTES


KEPT = ("hidden", "outputs", "inputs", "ranks", "scores")


def _activations(shape: BaseShape, spec: TrainSpec, values: Mapping[str, float], constants: Constants) -> float:
    """Bytes that backward needs. values: of parts()."""
    kept: float = sum(getattr(constants, name) * values[name] for name in KEPT)
    if not spec.activation_checkpointing:
        return kept
    # The layers' inputs are in the formula once, whatever share of them a run without checkpointing was found to keep.
    inputs = values["hidden"] / (shape.layers if spec.activation_offload else 1)
    return inputs + kept / shape.layers


def parts(shape: BaseShape, spec: TrainSpec, amount: Amount) -> dict[str, float]:
    """The formulas of this module's head, in bytes, each before its constant: what a fit multiplies."""
    e, largest = shape.value_bytes, with_candidates(spec, amount).largest
    tokens = largest.tokens * spec.method.members
    worn = worn_sites(shape, spec.method)
    linear_bytes = NF4_BITS / 8 if spec.method.base_precision == "nf4" else e
    trained = trained_parameters(shape, spec.method)
    return {
        "base": shape.linear_parameters * linear_bytes + shape.table_parameters * e,
        "adapter": runs_at_once(spec)
        * (trained * (8 + MOMENT_BYTES[spec.optimizer]) + 4 * kept_parameters(shape, spec.method)),
        "hidden": tokens * shape.layers * shape.hidden * e,
        "outputs": tokens * sum(site.width_out for site in shape.sites) * e,
        "inputs": tokens * sum(site.width_in for site, _ in worn) * e,
        "ranks": 4.0 * tokens * sum(rank for _, rank in worn),
        "scores": 4.0 * largest.squares * spec.method.members * shape.layers * shape.heads,
        "head": min(CHUNK, largest.learned * spec.method.members) * shape.vocabulary * 4.0,
    }


def after_probe(shape: BaseShape, spec: TrainSpec, amount: Amount, seen: Amount, measured_bytes: int) -> int:
    """The peak of the whole run, foretold from that of its first steps, in bytes.

    seen: of those steps, its largest micro-batch. What is foretold of both differs by what is still to come.
    """
    known = CONSTANTS["cpu"]
    to_come = memory_of(shape, spec, amount, known).total - memory_of(shape, spec, seen, known).total
    return measured_bytes + max(0, to_come)


def adapter_bytes(shape: BaseShape, spec: TrainSpec) -> int:
    """Of its zip: fp32 numbers, a header for each tensor, the config and card of each folder."""
    numbers, tensors = written_parameters(shape, spec.method)
    return 4 * numbers + BYTES_PER_TENSOR * tensors + CHECKPOINT_HEADER_BYTES * spec.method.members


def advice(shape: BaseShape, spec: TrainSpec, amount: Amount, device: Device, known: Constants) -> Iterator[Advice]:
    """Of each knob the least turn that alone makes the run fit; of a knob that cannot do it, nothing."""
    for knob in (_layers_again, _no_search, _fewer_tokens, _shorter_rows, _lower_rank, _four_bits):
        for param, value, turned, left in knob(spec, amount):
            needed = memory_of(shape, turned, left, known).total
            if needed <= device.memory_bytes:
                yield Advice(param=param, value=value, memory_bytes=needed)
                break


Turn = tuple[str, Any, TrainSpec, Amount]


def _layers_again(spec: TrainSpec, amount: Amount) -> Iterator[Turn]:
    if not spec.activation_checkpointing:
        param = "training.activation_checkpointing"
        yield param, True, spec.model_copy(update={"activation_checkpointing": True}), amount


def _no_search(spec: TrainSpec, amount: Amount) -> Iterator[Turn]:
    if spec.is_searching:
        yield "training.learning_rate", "auto", spec.model_copy(update={"rate_search": None}), amount


def _fewer_tokens(spec: TrainSpec, amount: Amount) -> Iterator[Turn]:
    met = amount.largest.tokens * spec.method.members * (2 if spec.dpo else 1)
    tokens = min(spec.tokens_per_batch, met)
    while tokens > FEWEST_TOKENS:
        tokens = max(FEWEST_TOKENS, tokens // 2)
        turned = spec.model_copy(update={"tokens_per_batch": tokens})
        # A row longer than that goes alone, and so does a pair, which counts twice.
        forward = tokens // spec.method.members // (2 if spec.dpo else 1)
        forward = max(forward, _row(amount) * (2 if spec.dpo else 1))
        yield "training.tokens_per_batch", tokens, turned, _cut(amount, forward)


def _shorter_rows(spec: TrainSpec, amount: Amount) -> Iterator[Turn]:
    length = min(spec.max_seq_length, _row(amount))
    while length > SHORTEST_LENGTH:
        length = max(SHORTEST_LENGTH, length // 2)
        changes = {"max_seq_length": length, "tokens_per_batch": max(FEWEST_TOKENS, length)}
        turned = spec.model_copy(update=changes)
        yield "training.max_seq_length", length, turned, _cut(amount, max(FEWEST_TOKENS, length))


def _lower_rank(spec: TrainSpec, amount: Amount) -> Iterator[Turn]:
    match spec.method:
        case LoraSpec(r=rank):
            field = "r"
        case AdaLoraSpec(init_r=rank):
            field = "init_r"
        case _:
            return
    while rank > 1:
        rank //= 2
        changes = {field: rank}
        if isinstance(spec.method, AdaLoraSpec):
            changes["target_r"] = min(rank, spec.method.target_r)
        method = spec.method.model_copy(update=changes)
        yield f"peft.{field}", rank, spec.model_copy(update={"method": method}), amount


def _four_bits(spec: TrainSpec, amount: Amount) -> Iterator[Turn]:
    if spec.method.base_precision != "nf4":
        method = spec.method.model_copy(update={"base_precision": "nf4"})
        yield "peft.base_precision", "nf4", spec.model_copy(update={"method": method}), amount


def _row(amount: Amount) -> int:
    return amount.largest.longest_row


def _cut(amount: Amount, tokens: int) -> Amount:
    """The same data where at most so many tokens go forward together."""
    largest = amount.largest
    share = min(1.0, tokens / max(largest.tokens, 1))
    cut = {
        "tokens": min(largest.tokens, tokens),
        "learned": min(largest.learned, tokens),
        "squares": math.ceil(largest.squares * share),
    }
    return amount.model_copy(update={"largest": largest.model_copy(update=cut)})
