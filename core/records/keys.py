"""API keys as text: graft_ENV_SECRET_CRC. The checksum turns a mistyped or made-up key away before any query."""

import hashlib
import re
import secrets
import zlib

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SECRET = 28  # characters: 62^28 is more than 2^166
SHOWN = 6  # characters of the secret that people may see, to tell keys apart
FORM = re.compile(r"graft_[a-z]{1,16}_[0-9A-Za-z]{28}_[0-9a-f]{8}")


def make(environment: str) -> str:
    """A new key. Whoever sees its text may use it; only its sha256 is kept."""
    text = f"graft_{environment}_{''.join(secrets.choice(ALPHABET) for _ in range(SECRET))}"
    return f"{text}_{zlib.crc32(text.encode()):08x}"


def is_well_formed(text: str) -> bool:
    """Whether this could be a key at all."""
    if not FORM.fullmatch(text):
        return False
    body, _, checksum = text.rpartition("_")
    return f"{zlib.crc32(body.encode()):08x}" == checksum


def digest(text: str) -> str:
    """What is stored of a key. A fast hash is enough: the secret has too many bits to be searched."""
    return hashlib.sha256(text.encode()).hexdigest()


def shown(text: str) -> str:
    """The beginning of a key, for lists."""
    return text[: len(text) - SECRET - 9 + SHOWN]
