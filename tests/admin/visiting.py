"""Settings for a dashboard, and visitors of it: a client with a cookie, and a browser."""

import shutil
from contextlib import contextmanager

import httpx
from browser import sign_in, visitor

from core.records import sessions
from core.settings import Settings


def settings_in(folder, empty_database, **fields):
    shutil.copy(empty_database, folder / "graft.db")
    return Settings(data_dir=folder, redis_url=f"unix://{folder}/nobody.sock", max_upload_bytes=1 << 20, **fields)


@contextmanager
def sitting(service, key=None):
    """A client that is signed in as a browser would be."""
    with httpx.Client(base_url=service.url, headers={"origin": service.url}, timeout=30) as client:
        answer = client.post("/admin/sign-in", data={"credential": key or service.key})
        assert answer.status_code == 303, answer.text
        yield client


def signed_in(chromium, service, **look):
    page = visitor(chromium, service.url, **look)
    sign_in(page, service, sessions.offer_code(service.database))
    return page
