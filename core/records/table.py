"""What all tables share: how a row is identified, how columns are typed, and whose a row is."""

import secrets
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SHA256 = String(64)
ID = String(64)
DOCUMENT = JSON(none_as_null=True)  # None is SQL's NULL, not the JSON document null


def new_id(prefix: str) -> str:
    """An opaque id such as file-8f3k…: 120 random bits."""
    alphabet = "0123456789abcdefghijklmnopqrstuvwxyz"
    return prefix + "".join(secrets.choice(alphabet) for _ in range(24))


class Table(DeclarativeBase):
    """What all tables share."""

    # Every constraint has a name, so that a later migration can drop it on SQLite too.
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map: ClassVar = {dict[str, Any]: DOCUMENT, list[Any]: DOCUMENT, float: Float(53), int: BigInteger}


class Owned:
    """The two columns by which every query of a customer's rows is scoped."""

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
