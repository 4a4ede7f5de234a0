"""The manners that every spec shares: closed to unknown fields, frozen, finite numbers only."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A thing that may be asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
