"""Who asks, as engines may know it: a key that tells projects apart and names none."""

import hashlib
import hmac

from core.records.accounts import Account
from core.settings import Settings
from core.specs.generation import QueueSpec


def queue_of(account: Account, settings: Settings, *, priority: int = 0) -> QueueSpec:
    """How an account's requests wait in engines.

    The tenant's key is the project's id under the secret of API and engines: the same at every front end, of use to
    nobody who does not hold the secret, and never a client's to choose.
    """
    named = f"tenant\0{account.project_id}".encode()
    return QueueSpec(
        tenant=hmac.new(settings.engine_token.encode(), named, hashlib.sha256).hexdigest(),
        weight=settings.tenant_weights.get(account.project_id, 1.0),
        priority=priority,
        deadline_s=settings.answer_s,
    )
