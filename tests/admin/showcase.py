"""A project that has been at work for a while, made by the records' own functions: for pages to show."""

import json
import math
import random
from pathlib import Path

from serving import BASE, peft_zip
from sqlalchemy import update

import core.data.formats
from core.blobs import open_store
from core.records import jobs, presences, usage
from core.records.database import now_s
from core.records.tables import Job, Presence, Usage, new_id

SAMPLES = Path(core.data.formats.__file__).parent / "samples"
LAYERS = [
    f"model.layers.{n}.{site}" for n in range(6) for site in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
]


def furnish(service) -> dict[str, str]:
    """Ids of what there is: a file, two jobs that succeeded, two that run in step, one that failed, one that waits."""
    tickets = service.upload((SAMPLES / "tickets.train.jsonl").read_bytes(), name="tickets.train.jsonl").json()["id"]
    heldout = service.upload((SAMPLES / "tickets.heldout.jsonl").read_bytes(), name="tickets.heldout.jsonl").json()[
        "id"
    ]
    odd = [{"prompt": f"Say {n % 9}.", "completion": " twice" * (1 + n % 30)} for n in range(200)]
    service.upload("\n".join(map(json.dumps, odd)), name="echo.jsonl")
    both = {"training_file": tickets, "validation_file": heldout}
    done = finished(service, suffix="tickets", peft={"type": "lora", "r": 16}, **both)
    prompt = finished(service, suffix="tickets-prompt", peft={"type": "prompt_tuning"}, steps=90, pace=0.6, **both)
    failed = service.job(suffix="notes", training_file=tickets, peft={"type": "p_tuning"}).json()["id"]
    held = jobs.claim(service.database, owner="trainer", lease_s=600, job_id=failed)
    jobs.fail(
        service.database,
        held,
        code="loss_not_finite",
        message="The loss was not a number at step 12: lower the learning rate.",
    )
    running = service.job(suffix="tickets-small", peft={"type": "adalora"}, **both).json()["id"]
    advance(service, running, steps=96, of=150, pace=1.4)
    beside = service.job(suffix="tickets-words", peft={"type": "p_tuning"}, **both).json()["id"]
    advance(service, beside, steps=60, of=150, pace=0.45)
    waiting = service.job(suffix="tickets-nf4", peft={"type": "qlora"}, **both).json()["id"]
    names = [one["name"] for one in service.http.get("/v1/adapters").json()["data"]]
    for n in range(40):
        with service.database.writing() as session:
            model = names[n % 2] if n % 3 else "smollm2-135m-instruct"
            usage.record(
                session,
                service.account,
                request_id=new_id("req_"),
                model=model,
                prompt_tokens=80 + n,
                completion_tokens=30 + n * n,
            )
    with service.database.writing() as session:  # over three weeks
        days = (Usage.completion_tokens % 19) * 86_400
        session.execute(update(Usage).values(created_at=Usage.created_at - days))
    adapter = versions(service, **both)
    operate(service)
    made = {"done": done, "prompt": prompt, "failed": failed, "running": running, "beside": beside, "waiting": waiting}
    return {"adapter": adapter, "file": tickets, **made}


def versions(service, **files) -> str:
    """A second version that goes on from the first; an alias that was moved to it, and another. The second's id."""
    first = service.http.get("/v1/adapters/tickets@v1").json()
    service.http.post("/v1/adapters/tickets@v1/aliases/production")
    finished(service, suffix="tickets", peft={"type": "lora", "r": 16}, continue_from=first["name"], steps=60, **files)
    service.http.post("/v1/adapters/tickets@v1/aliases/previous")
    service.http.post("/v1/adapters/tickets@v2/aliases/production")
    return service.http.get("/v1/adapters/tickets@v2").json()["id"]


def operate(service) -> None:
    """A trainer and a second engine that speak until tomorrow, a job that was given up, answers that were kept."""
    given_up = service.job(suffix="notes-large", peft={"type": "prefix_tuning"}).json()["id"]
    ended = {"error_code": "poison", "error_message": "Three attempts in a row died before their first step."}
    with service.database.writing() as session:
        over = {"state": "failed", "finished_at": now_s(), "attempt": 3, **ended}
        session.execute(update(Job).where(Job.id == given_up).values(**over))
    held = [one["sha256"] for one in service.http.get("/v1/adapters").json()["data"]]
    by_adapter = {held[n]: {"tier": tier, "requests": 41} for n, tier in enumerate(("device", "disk"))}
    status = {"running": 5, "rows": 16, "waiting": 0, "tokens": 48_211, "by_adapter": by_adapter}
    device = {"kind": "cpu", "memory_bytes": 33_500_000_000}
    for worker_id, role, details in (
        (new_id("engine-"), "engine", {"device": device, "base_precision": "nf4", "context": 2048, "status": status}),
        (new_id("trainer-"), "trainer", {"device": device, "owner": "trainer"}),
    ):
        said = {"is_ready": True, "details": details, "url": "http://127.0.0.1:9", "base_model": BASE}
        presences.beat(service.database, worker_id, role=role, **said)
        with service.database.writing() as session:
            session.execute(update(Presence).where(Presence.id == worker_id).values(beat_at=now_s() + 86_400))
    for asked, answer in (("Where is my parcel?", "delivery"), ("I was charged twice this month.", "billing")):
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        service.http.post("/v1/evaluation_rows", json={"messages": turns})


def finished(service, steps=140, pace=1.0, **fields) -> str:
    """A job that has succeeded, with its checkpoints and its adapter."""
    job_id = service.job(**fields).json()["id"]
    held = advance(service, job_id, steps=steps, of=steps, pace=pace)
    blob = open_store(service.settings).put_bytes(peft_zip(job_id))
    for step in (steps // 2, steps):
        metrics = {"train_loss": loss_at(step * pace), "full_valid_loss": loss_at(step * pace) + 0.08}
        jobs.record_checkpoint(service.database, held, step=step, metrics=metrics, adapter=blob)
    kind = "PROMPT_TUNING" if fields["peft"]["type"] == "prompt_tuning" else "LORA"
    jobs.succeed(
        service.database,
        held,
        adapter=blob,
        peft_type=kind,
        details={"parameters": 4_884_480, "base_precision": "bf16"},
        step=steps,
        trained_tokens=61_234,
        outcome={"served_step": steps // 30 * 30, "best_step": None, "best_valid_loss": None, "stopped_early": False},
    )
    return job_id


def advance(service, job_id, *, steps, of, pace=1.0):
    """A worker's claim, and what it writes down of so many steps. pace: how fast the loss falls."""
    held = jobs.claim(service.database, owner="trainer", lease_s=3600, job_id=job_id)
    chance = random.Random(7)
    told = [jobs.Event("phase", "Training", data={"phase": "training"})]
    for step in range(1, steps + 1):
        told.append(
            jobs.Event("step", f"Step {step}/{of}", type="metrics", step=step, data=figures(step, of, chance, pace))
        )
        if step % 30 == 0:
            told += [validation(step, of, pace), samples(step)]
    jobs.record(service.database, held, told)
    jobs.beat(
        service.database, held, lease_s=3600, step=steps, total_steps=of, phase="training", trained_tokens=steps * 437
    )
    return held


def loss_at(step: int) -> float:
    return 0.35 + 3.1 * math.exp(-step / 28)


def figures(step, of, chance, pace):
    ranks = {layer: max(1, round(12 - step / of * (2 + (n * 7) % 10))) for n, layer in enumerate(LAYERS)}
    return {
        "step": step,
        "total_steps": of,
        "train_loss": loss_at(step * pace) * chance.uniform(0.82, 1.2),
        "train_mean_token_accuracy": 1 - loss_at(step * pace) / 4 * chance.uniform(0.9, 1.1),
        "learning_rate": 5e-4 * min(1, step / 5) * (0.5 + 0.5 * math.cos(math.pi * step / of)),
        "grad_norm": 0.4 + 2 * math.exp(-step / 20) * chance.uniform(0.6, 1.5),
        "tokens_per_s": 1180 * chance.uniform(0.93, 1.04),
        "gpu_mem_bytes": 1_610_000_000 + step * 20_000,
        **({"ranks": ranks} if step % 6 == 0 else {}),
    }


def validation(step, of, pace):
    loss = loss_at(step * pace) + 0.08
    data = {
        "step": step,
        "total_steps": of,
        "train_loss": None,
        "valid_loss": loss,
        "full_valid_loss": loss,
        "full_valid_mean_token_accuracy": 1 - loss / 4,
    }
    return jobs.Event(
        "validation", f"Step {step}/{of}: validation loss={loss:.3f}", type="metrics", step=step, data=data
    )


def samples(step):
    rows = [
        (
            "My parcel has been stuck in Leipzig since Tuesday.",
            "delivery",
            "delivery" if step > 30 else "The parcel is in Leipzig.",
        ),
        ("I was charged twice this month.", "billing", "billing"),
        ("The lamp arrived with a crack.", "returns", "returns" if step > 60 else "delivery"),
    ]
    said = [{"prompt": prompt, "expected": expected, "said": said} for prompt, expected, said in rows]
    return jobs.Event("samples", f"Step {step}: samples", step=step, data={"samples": said})
