"""`make screenshots`: every page of the dashboard into docs/images, on a desk, on a phone, in the dark, in Chinese.

The project is made up (showcase.py), and so are its curves and answers: they show pages, not what training achieves.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "api"), str(ROOT / "tests" / "admin")]

import showcase  # noqa: E402  # found by the line above
from browser import chromium, executable  # noqa: E402
from serving import running, serving  # noqa: E402
from visiting import signed_in  # noqa: E402

from core.records.database import Database  # noqa: E402
from core.settings import Settings  # noqa: E402

PAGES = {
    "overview": "/admin",
    "data": "/admin/data",
    "dataset": "/admin/data/{file}",
    "jobs": "/admin/jobs",
    "new-job": "/admin/jobs/new",
    "job": "/admin/jobs/{running}",
    "finished-job": "/admin/jobs/{done}",
    "compare": "/admin/jobs/compare?job={done}&job={prompt}&job={running}&job={beside}",
    "adapters": "/admin/adapters",
    "adapter": "/admin/adapters/{adapter}",
    "playground": "/admin/playground",
    "kept-answers": "/admin/playground/rows",
    "workers": "/admin/workers",
    "keys": "/admin/keys",
    "usage": "/admin/usage",
    "audit": "/admin/audit",
    "settings": "/admin/settings",
}
LOOKS = {
    "desktop": {},
    "phone": {"width": 360, "height": 740},
    "dark": {"scheme": "dark"},
    "chinese": {"locale": "zh-CN"},
}
SETTLED_MS = 900  # until charts are drawn and answers have come


def main() -> int:
    """0 once all are made; 1 where there is no Chromium."""
    if executable() is None:
        print("no Chromium here: apt-get install chromium, or name one by GRAFT_CHROMIUM")  # noqa: T201
        return 1
    target = ROOT / "docs" / "images"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), redis_url=f"unix://{folder}/nobody.sock")
        database = Database(settings.database)
        database.migrate()
        database.close()
        with serving(settings) as service, running(service), chromium() as browser:
            begin(browser, service, target)
            ids = showcase.furnish(service)
            for look, how in LOOKS.items():
                page = signed_in(browser, service, **how)
                for name, place in PAGES.items():
                    page.goto(service.url + place.format(**ids))
                    if name == "playground":
                        ask(page)
                    page.wait_for_timeout(SETTLED_MS)
                    page.screenshot(path=target / f"{name}-{look}.png", full_page=True)
                page.context.close()
    return 0


def begin(browser, service, target):
    """What a newcomer sees: the sign-in, and an empty service."""
    page = signed_in(browser, service)
    page.wait_for_timeout(SETTLED_MS)
    page.screenshot(path=target / "first-look-desktop.png")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/admin/sign-in")
    page.screenshot(path=target / "sign-in-desktop.png")
    page.context.close()


def ask(page):
    """One question to the models that are chosen."""
    page.locator("#prompt").fill("My parcel has been stuck in Leipzig since Tuesday.")
    page.locator("#ask summary").click()
    page.locator("#max_tokens").fill("24")
    page.locator("#ask summary").click()
    page.locator("#go").click()


if __name__ == "__main__":
    raise SystemExit(main())
