"""`make paint`: how soon pages of the dashboard are seen, in a real Chromium, on the furniture of showcase.py.

Of each page and width, the median of seven loads with a warm cache: first-contentful-paint; the time until the page's
first byte; its bytes. Printed as a table, and kept in benchmarks/results/first_paint.json, unless
only some pages are measured, which arguments name. The plainest page of all, an
error, stands beside them: what is left there is the browser's own.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "api"), str(ROOT / "tests" / "admin")]

import showcase  # noqa: E402  # found by the line above
from browser import chromium, executable  # noqa: E402
from screenshots import PAGES  # noqa: E402
from serving import running, serving  # noqa: E402
from visiting import signed_in  # noqa: E402

from core.records.database import Database  # noqa: E402
from core.settings import Settings  # noqa: E402

GOAL_MS = 200
LOADS = 7
WIDTHS = {1440: {}, 360: {"width": 360, "height": 740}}
PLAINEST = {"plainest": "/admin/jobs/ftjob-none"}
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
ARRIVAL = """() => {
  const page = performance.getEntriesByType("navigation")[0];
  return { waited_ms: page.responseStart - page.requestStart, bytes: page.decodedBodySize };
}"""
RESULT = ROOT / "benchmarks" / "results" / "first_paint.json"


def main() -> int:
    """0 once all are measured; 1 where there is no Chromium. What misses the goal is said, and no failure."""
    if executable() is None:
        print("no Chromium here: apt-get install chromium, or name one by GRAFT_CHROMIUM")  # noqa: T201
        return 1
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), redis_url=f"unix://{folder}/nobody.sock")
        database = Database(settings.database)
        database.migrate()
        database.close()
        with serving(settings) as service, running(service), chromium() as browser:
            ids = showcase.furnish(service)
            found = [one for width in WIDTHS for one in measured(browser, service, ids, width)]
    load = round(os.getloadavg()[0], 1)
    if not sys.argv[1:]:
        RESULT.write_text(json.dumps({"loads": LOADS, "load_average": load, "pages": found}, indent=1) + "\n")
    show(found, load)
    return 0


def measured(browser, service, ids, width):
    """One row for each page: medians of so many loads after one that is not counted."""
    page = signed_in(browser, service, **WIDTHS[width])
    wanted = sys.argv[1:] or PLAINEST | PAGES
    for name, place in (PLAINEST | PAGES).items():
        if name not in wanted:
            continue
        address = service.url + place.format(**ids)
        loads = [load(page, address) for _ in range(LOADS + 1)][1:]
        medians = {key: round(statistics.median(one[key] for one in loads)) for key in loads[0]}
        yield {"page": name, "width": width, **medians}
    page.context.close()


def load(page, address):
    """When a page was first seen after its address was followed, and when its first byte came."""
    page.goto(address)
    while (painted_ms := page.evaluate(PAINT)) is None:
        page.wait_for_timeout(10)
    return {"first_paint_ms": painted_ms, **page.evaluate(ARRIVAL)}


def show(found, load):
    """The table, and which pages miss the goal."""
    print(f"load average {load}; medians of {LOADS}\n\npage            width  first paint  waited   bytes")  # noqa: T201
    for one in found:
        mark = " *" if one["first_paint_ms"] > GOAL_MS else ""
        figures = f"{one['first_paint_ms']:>8} ms  {one['waited_ms']:>4} ms  {one['bytes']:>7}"
        print(f"{one['page']:<15} {one['width']:>5}  {figures}{mark}")  # noqa: T201
    print(f"* over {GOAL_MS} ms")  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
