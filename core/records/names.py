"""How a fine-tuned model is called: ft:BASE:ORG:SUFFIX:ID, and ft:BASE:ORG:SUFFIX:ID:ckpt-step-N for a checkpoint."""

import re

SHORT = 8  # characters of the job's id: 41 random bits, and the name's uniqueness is the database's to keep


def plain_suffix(suffix: str | None) -> str:
    """A suffix as it stands in names: runs of characters other than a-z 0-9 . _ - become one -. May be empty."""
    return re.sub(r"[^a-z0-9._-]+", "-", (suffix or "").lower()).strip("-")


def model_name(base_model: str, organization_slug: str, suffix: str | None, job_id: str) -> str:
    """The name of a job's adapter. SUFFIX may be empty."""
    return f"ft:{base_model}:{organization_slug}:{plain_suffix(suffix)}:{job_id.rpartition('-')[2][:SHORT]}"


def checkpoint_name(model: str, step: int) -> str:
    """The name of a checkpoint of the job whose adapter is called model."""
    return f"{model}:ckpt-step-{step}"
