"""A real Chromium without a window: Debian's, or one that GRAFT_CHROMIUM names."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"]
AXE = (Path(__file__).parent / "axe-4.14.1.min.js").read_text(encoding="utf-8")


def executable() -> str | None:
    """Where a Chromium is, if there is one."""
    return os.environ.get("GRAFT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium():
    """A browser, as long as the block lasts."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def visitor(browser, home, *, width=1440, height=900, scheme="light", locale="en-US"):
    """A page in a context of its own, before any sign-in. It keeps what went wrong in .faults."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, locale=locale, reduced_motion="reduce"
    )
    page = context.new_page()
    page.faults = watch(page, home)
    return page


def sign_in(page, service, code):
    page.goto(f"{service.url}/admin/sign-in#{code}")
    page.wait_for_url(f"{service.url}/admin")


def watch(page, home) -> list[str]:
    """What a page says to its console, throws, or asks of others, from now on."""
    faults = []
    page.on("console", lambda said: faults.append(f"console: {said.text}") if is_fault(said) else None)
    page.on("pageerror", lambda error: faults.append(f"threw: {error}"))
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((home, "data:", "blob:")) else faults.append(f"asked {asked.url}"),
    )
    return faults


def is_fault(said) -> bool:
    """Chromium tells of every refused request: an estimate is refused, and the page says so, where no engine counts."""
    is_refused_estimate = said.location["url"].endswith("/v1/fine_tuning/estimate")
    return said.type in {"error", "warning"} and not is_refused_estimate


def axe_faults(page) -> list[str]:
    """What axe-core finds wrong, rule by rule, with the first place of each."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['nodes'][0]['target']} {one['nodes'][0]['failureSummary']}" for one in found["violations"]
    ]
