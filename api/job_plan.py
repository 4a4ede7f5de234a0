"""From a job request to what will run: the files it names, every "auto" made a number, rows too long found."""

import secrets
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select

from api import continuing, errors
from api.job_request import JobRequest
from api.resources import Resources
from core.records import adapters, datasets
from core.records.accounts import Account
from core.records.adapters import Model
from core.records.tables import File, Presence
from core.specs.dataset import misfit
from core.specs.estimate import Estimate
from core.specs.method import MethodSpec
from core.specs.training import TrainingRequest, TrainSpec, resolve

SHORTEST_ROW = 2  # a token, and one to learn
PROMPTS = ("PROMPT_TUNING", "P_TUNING")  # kinds of adapters that a prompt may start from


@dataclass(frozen=True)
class Plan:
    """A job that may be created."""

    spec: TrainSpec
    training_file: File
    validation_file: File | None
    may_keep_less: bool = False  # whether the estimate says what is kept for backward, as far as the job left it open

    def settled(self, found: Estimate | None) -> "Plan":
        """With what the estimate chose."""
        if found is None or not self.may_keep_less:
            return self
        chosen = {name: getattr(found, name) for name in ("activation_checkpointing", "activation_offload")}
        return replace(self, spec=self.spec.model_copy(update=chosen))


def plan(resources: Resources, account: Account, asked: JobRequest) -> Plan:
    """Raises ClientError 400, which names the field. Blocking."""
    hyperparameters = asked.chosen_hyperparameters()
    must_be_a_base(resources, asked.model)
    source = asked.continue_from and continuing.source_of(resources, account, asked.model, asked.continue_from)
    method = continuing.method_of(resources, asked, source) if source else asked.chosen_method()
    _refuse_idle_fields(method)
    _refuse_blind_stopping(asked)
    dpo = asked.chosen_dpo()
    training_file = _trainable(resources, account, asked.training_file, "training_file", is_dpo=dpo is not None)
    validation_file = asked.validation_file and _trainable(
        resources, account, asked.validation_file, "validation_file", is_dpo=dpo is not None
    )
    start = method.starts_from and _start(resources, account, asked.model, method.starts_from)
    if start:
        method = method.model_copy(update={"init_adapter": start.name})
    training = asked.training or TrainingRequest()
    spec = resolve(
        base_model=asked.model,
        context=context_of(resources, asked.model),
        method=method,
        hyperparameters=hyperparameters,
        training=training,
        seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        n_examples=(training_file.validation or {}).get("n_examples", 1),
        dpo=dpo,
    )
    _refuse_unfit_schedule(spec, (training_file.validation or {}).get("n_examples", 1))
    must_have_room(spec)
    if source:
        spec = spec.model_copy(update={"continue_from": source.name, "continue_from_sha256": source.sha256})
    spec = spec.model_copy(update={"init_adapter_sha256": start.sha256 if start else None})
    return Plan(spec, training_file, validation_file or None, training.activation_checkpointing is not False)


def must_have_room(spec: TrainSpec) -> None:
    """Raises ClientError 400 where a prefix leaves too little of the context for rows."""
    if spec.max_seq_length < SHORTEST_ROW:
        raise errors.bad_request(
            f"a prefix of {spec.method.prefix_length} leaves {spec.max_seq_length} tokens of the context for rows; "
            f"at least {SHORTEST_ROW} are needed",
            param="peft.num_virtual_tokens",
            code="no_room_for_rows",
        )


def _refuse_blind_stopping(asked: JobRequest) -> None:
    if asked.training and asked.training.early_stopping and asked.validation_file is None:
        raise errors.bad_request(
            "training.early_stopping looks at the validation loss, and there is no validation_file: name one",
            param="training.early_stopping",
            code="validation_file_required",
        )


def _refuse_idle_fields(method: MethodSpec) -> None:
    if idle := method.idle():
        name, needs = idle
        raise errors.bad_request(
            f"peft.{name} {getattr(method, name)} does nothing here: it needs {needs}; change that, or leave it out",
            param=f"peft.{name}",
            code="invalid_value",
        )


def _refuse_unfit_schedule(spec: TrainSpec, n_examples: int) -> None:
    steps = -(-n_examples // spec.batch_size) * spec.n_epochs
    try:
        spec.method.must_fit(steps)
    except ValueError as error:
        raise errors.bad_request(str(error), param="peft.tinit", code="invalid_value") from None


def must_be_a_base(resources: Resources, model: str) -> None:
    """Raises ClientError 400 unless it may be fine-tuned here."""
    if model not in resources.settings.base_models:
        raise errors.bad_request(
            f"No base model of that name may be fine-tuned here; there is: {', '.join(resources.settings.base_models)}",
            param="model",
            code="model_not_found",
        )


def _trainable(resources: Resources, account: Account, file_id: str, param: str, *, is_dpo: bool) -> File:
    file = dataset(resources, account, file_id, param)
    if fault := misfit(str((file.validation or {}).get("format")), is_dpo=is_dpo):
        raise errors.bad_request(f"{param}: {fault}", param=param, code="unsupported_format")
    return file


def dataset(resources: Resources, account: Account, file_id: str, param: str) -> File:
    """The account's dataset. Raises ClientError 400, which names the field. Blocking."""
    with resources.database.session() as session:
        file = datasets.find(session, account, file_id)
    if file is None:
        raise errors.bad_request(f"{param}: there is no file of this id", param=param, code="file_not_found")
    if file.purpose != "fine-tune" or file.status != "processed":
        raise errors.bad_request(
            f"{param}: the file's purpose must be fine-tune and its status processed, "
            f"not {file.purpose} and {file.status}",
            param=param,
            code="invalid_training_file",
        )
    return file


def _start(resources: Resources, account: Account, base_model: str, name_or_id: str) -> Model:
    """The adapter or checkpoint that a prompt is to start from. It is fixed here: an alias may come to mean another."""
    with resources.database.session() as session:
        found = adapters.resolve(session, account, name_or_id, base_models=())
    param = "peft.init_adapter"
    if found is None:
        raise errors.bad_request(
            f"{param}: there is no model of this name or id", param=param, code="init_adapter_not_found"
        )
    kind = continuing.kind_of(resources, found)
    if kind not in PROMPTS or found.base_model != base_model or found.members != 1:
        this = f"{kind} of {found.base_model}" + (f" with {found.members} members" if found.members != 1 else "")
        raise errors.bad_request(
            f"{param}: a single prompt ({' or '.join(PROMPTS)}) of {base_model} is expected; this is {this}",
            param=param,
            code="init_adapter_unusable",
        )
    return found


def context_of(resources: Resources, base_model: str) -> int:
    """Tokens of the longest row, as the ready engine that started last says; before any has, as the settings say."""
    newest = (
        select(Presence.details)
        .where(Presence.role == "engine", Presence.base_model == base_model)
        .order_by(Presence.is_ready.desc(), Presence.started_at.desc())
        .limit(1)
    )
    with resources.database.session() as session:
        details = session.scalar(newest) or {}
    return int(details.get("context", resources.settings.engine_context))


def too_long(param: str, longest: int, rows: list[dict[str, Any]]) -> errors.ClientError:
    """400 for rows of more tokens than fit, each with its line."""
    details = [
        {
            "line": row["line"],
            "field": "",
            "code": "too_long",
            "message": f"the example has {row['tokens']} tokens; at most {longest} fit",
        }
        for row in rows
    ]
    first = details[0]
    return errors.bad_request(
        f"{param}, line {first['line']}: {first['message']}", param=param, code="invalid_training_file", details=details
    )
