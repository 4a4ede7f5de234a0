"""Why an attempt ends before its run does. Knows no job."""


class Drained(Exception):
    """Somebody asked this attempt to stop, and what it did is on disk."""


class UnusableMethodError(ValueError):
    """The base model cannot wear what the spec asks for. The message is for the customer."""


class Diverged(Exception):
    """Loss or gradients were not finite again after one roll-back. The message is for the customer."""
