"""The dashboard on a real front end, over HTTP and in a real Chromium."""

import shutil

import browser
import httpx
import pytest
import showcase
from serving import running, serving

from core.records import sessions
from core.records.database import Database
from core.settings import Settings


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "graft.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


def settings_in(folder, empty_database, **fields):
    shutil.copy(empty_database, folder / "graft.db")
    return Settings(data_dir=folder, redis_url=f"unix://{folder}/nobody.sock", max_upload_bytes=1 << 20, **fields)


@pytest.fixture
def settings(tmp_path, empty_database):
    return settings_in(tmp_path, empty_database)


@pytest.fixture
def service(settings):
    with serving(settings) as running_service:
        yield running_service


@pytest.fixture
def visitor(service):
    """A client that is signed in as a browser would be."""
    with sitting(service) as client:
        yield client


def sitting(service, key=None):
    origin = service.url
    client = httpx.Client(base_url=origin, headers={"origin": origin}, timeout=30)
    answer = client.post("/admin/sign-in", data={"credential": key or service.key})
    assert answer.status_code == 303, answer.text
    return client


@pytest.fixture(scope="session")
def chromium():
    if browser.executable() is None:
        pytest.skip("no Chromium here: apt-get install chromium, or name one by GRAFT_CHROMIUM")
    with browser.chromium() as one:
        yield one


@pytest.fixture(scope="session")
def shown(tmp_path_factory, empty_database):
    """A furnished project for tests that only look at it, and its ids."""
    settings = settings_in(tmp_path_factory.mktemp("shown"), empty_database)
    with serving(settings) as service, running(service):
        yield service, showcase.furnish(service)


def signed_in(chromium, service, **look):
    page = browser.visitor(chromium, service, **look)
    browser.sign_in(page, service, sessions.offer_code(service.database))
    return page


@pytest.fixture
def page(chromium, service):
    """A browser at the overview of an empty project."""
    one = signed_in(chromium, service)
    yield one
    assert one.faults == []
    one.context.close()
