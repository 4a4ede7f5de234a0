"""What belongs to a step just done, by how far its run is. Knows no file."""

from core.run import Run
from core.settings import Settings


def validation(run: Run) -> bool:
    """Whether the validation file is to be scored, if there is one."""
    every = run.spec.eval_steps
    return run.step == run.total_steps or (run.step % every == 0 if every else run.is_at_epoch_end)


def adapter(run: Run) -> bool:
    """Whether the step is to be usable as a model: the last is, and the last epochs are, as many as the spec says."""
    return run.is_stopped or (run.is_at_epoch_end and run.epoch > run.spec.n_epochs - run.spec.n_checkpoints)


def checkpoint(run: Run, settings: Settings, *, since_s: float) -> bool:
    """Whether the run's state is to be kept. since_s: how long ago it last was."""
    return since_s >= settings.checkpoint_s or run.is_at_epoch_end or run.step % settings.checkpoint_steps == 0
