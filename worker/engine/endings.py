"""Why the engine ends a row that could go on: what its reader is told."""

from core.specs.generation import FrameError

LATE = FrameError(code="engine_overloaded", message="the request waited too long for a place", retryable=True)
CROWDED = FrameError(
    code="engine_overloaded", message="the engine is full, and others who wait have less of it", retryable=True
)
EXPIRED = FrameError(code="deadline_exceeded", message="the answer was not whole by the request's deadline")
MIGRATE = FrameError(code="migrate", message="this engine is stopping; go on at another", retryable=True)
