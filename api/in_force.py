"""The settings in force, as an administrator may see them: no secret is shown."""

from pydantic import SecretStr

from core.settings import Settings

SECRET = "set, not shown"  # noqa: S105  # what stands in a secret's place


def in_force(settings: Settings) -> list[tuple[str, str, str]]:
    """Each setting's variable, its value as text, and what it is."""
    found = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        is_secret = isinstance(value, SecretStr) or (name.endswith("_url") and "@" in str(value))
        shown = SECRET if is_secret else "" if value is None else str(value)
        found.append((f"GRAFT_{name.upper()}", shown, field.description or ""))
    return found
