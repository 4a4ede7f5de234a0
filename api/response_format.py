"""What form an answer is to have: OpenAI's `response_format`. An engine holds the answer to it, token by token."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from core.specs.generation import MAX_SCHEMA_CHARACTERS
from core.specs.spec import Spec

ANY_OBJECT = json.dumps({"type": "object"})


class TextFormat(Spec):
    """Whatever comes."""

    type: Literal["text"]

    def json_schema_text(self) -> str | None:
        """None: nothing is held."""
        return None


class JSONObjectFormat(Spec):
    """Some JSON object."""

    type: Literal["json_object"]

    def json_schema_text(self) -> str | None:
        """The schema of every object."""
        return ANY_OBJECT


class NamedSchema(BaseModel):
    """A schema as OpenAI's clients send it. It is held to whether or not it is called strict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, StringConstraints(max_length=4096)] | None = None
    strict: bool | None = None
    definition: dict[str, Any] = Field(alias="schema")

    @field_validator("definition")
    @classmethod
    def _not_too_long(cls, definition: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(definition)) > MAX_SCHEMA_CHARACTERS:
            raise ValueError(f"the schema has more than {MAX_SCHEMA_CHARACTERS} characters")
        return definition


class JSONSchemaFormat(Spec):
    """JSON that validates against a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    def json_schema_text(self) -> str | None:
        """The schema, as text."""
        return json.dumps(self.json_schema.definition)


ResponseFormat = Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")]
