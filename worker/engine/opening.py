"""What an engine process opens before it is ready: the base model, and all that works with it."""

from collections.abc import Callable
from dataclasses import dataclass

from core.base.catalogue import entry
from core.base.load import NAMES, OpenBase, open_base
from core.blobs import BlobStore
from core.model import RoutedModel
from core.settings import Settings
from core.specs.generation import GenerateSpec, MeasureSpec, SamplingSpec
from core.specs.inspection import Inspected, InspectSpec
from core.specs.preview import Preview, PreviewSpec
from worker.engine.engine import Engine
from worker.engine.inspection import Inspector
from worker.engine.intake import Intake
from worker.engine.layout import lay_out
from worker.engine.measuring import Measurer
from worker.engine.tiers import Tiers
from worker.manifest import facts_of_base
from worker.room import device_of


@dataclass(frozen=True, eq=False)
class Opened:
    """All that comes with the base model."""

    engine: Engine
    intake: Intake
    measure: Callable[[MeasureSpec], dict[str, object]]
    preview: Callable[[PreviewSpec], Preview]
    inspect: Callable[[InspectSpec], Inspected]
    details: dict[str, object]  # for the presence row
    tiers: Tiers


def open_engine(settings: Settings, store: BlobStore) -> Opened:
    """The base model in memory and an engine about it, warmed up. Takes seconds."""
    base = open_base(
        entry(settings.base_models, settings.default_base_model),
        cache_dir=settings.cache_dir,
        device=settings.device,
        precision=settings.precision,
        base_precision=settings.engine_precision,
    )
    model = RoutedModel(base.model)
    is_packed = lay_out(model, settings)
    context = min(settings.engine_context, base.facts.context)
    tiers = Tiers(settings, store, model)
    engine = Engine(
        model,
        tiers.load,
        rows=settings.engine_rows,
        context=context,
        adapter_memory_bytes=settings.adapter_memory_bytes,
        prefix_cache_bytes=settings.prefix_cache_bytes,
        tier=tiers.tier,
        base=f"{settings.default_base_model}/{base.revision}/{base.base_precision}/{NAMES[base.dtype]}",
    )
    intake = Intake(
        base.tokenizer,
        base_model=settings.default_base_model,
        base_precision=settings.engine_precision,
        context=context,
        vocabulary=base.facts.vocabulary,
        stop_ids=frozenset(base.stop_ids),
    )
    _warm_up(engine, intake, settings)
    inspect = Inspector(store, settings.cache_dir, model, facts_of_base(base)).inspect
    measurer = Measurer(store, settings.cache_dir, base)
    details = _details(settings, base, context) | {"is_packed": is_packed}
    return Opened(engine, intake, measurer.measure, measurer.preview, inspect, details, tiers)


def _details(settings: Settings, base: OpenBase, context: int) -> dict[str, object]:
    return {
        "context": context,
        "vocabulary": base.facts.vocabulary,
        "base_precision": base.base_precision,
        "precision": NAMES[base.dtype],
        "device": base.device.type,
        "memory_bytes": device_of(settings)["memory_bytes"],
        "rows": settings.engine_rows,
        "revision": base.revision,
    }


def _warm_up(engine: Engine, intake: Intake, settings: Settings) -> None:
    """What libraries put off until a first call shall not be put upon a customer."""
    spec = GenerateSpec(
        request_id="warm-up",
        base_model=settings.default_base_model,
        base_precision=settings.engine_precision,
        prompt_ids=(0,) * 8,
        sampling=SamplingSpec(max_tokens=2),
    )
    engine.submit(intake.sequence(spec, lambda _: None))
    while engine.step():
        pass
