"""The dashboard on a real front end, over HTTP and in a real Chromium."""

import browser
import pytest
import showcase
from serving import running, serving
from visiting import settings_in, signed_in, sitting

from core.records.database import Database


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "graft.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


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


@pytest.fixture(scope="module")
def chromium():
    """Gone with its module: as long as it is there an event loop runs, beside which no other test could start one."""
    if browser.executable() is None:
        pytest.skip("no Chromium here: apt-get install chromium, or name one by GRAFT_CHROMIUM")
    with browser.chromium() as one:
        yield one


@pytest.fixture(scope="module")
def shown(tmp_path_factory, empty_database):
    """A furnished project for tests that only look at it, and its ids. Its threads end with the module."""
    settings = settings_in(tmp_path_factory.mktemp("shown"), empty_database)
    with serving(settings) as service, running(service):
        yield service, showcase.furnish(service)


@pytest.fixture
def page(chromium, service):
    """A browser at the overview of an empty project."""
    one = signed_in(chromium, service)
    yield one
    assert one.faults == []
    one.context.close()
