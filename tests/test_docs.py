"""Documentation that cannot rot: what a user may set, call or open is described, and what is described exists."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from api.main import create_app
from core.settings import Settings
from core.specs.method import SPECS, AdaLoraSpec, LoraSpec
from core.specs.training import DPOHyperparametersRequest, HyperparametersRequest, TrainingRequest

ROOT = Path(__file__).parent.parent


def documented(page: str, words: list[str]) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [word for word in words if f"`{word}`" not in text]


def page_of(spec: type[BaseModel]) -> str:
    """A method's own page."""
    name = spec.model_fields["type"].default
    return (ROOT / f"docs/methods/{name}.md").read_text(encoding="utf-8")


def without_row(spec: type[BaseModel], page: str) -> list[str]:
    """Fields that have no row in the page's table which begins with their name and their default."""
    found = []
    for name, field in spec.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = rf"`?{re.escape(as_written(default))}`?"
        if not re.search(rf"(?m)^\| `{name}` \| {shown} \| .*\|$", page):
            found.append(name)
    return found


def as_written(default: object) -> str:
    """A default as the tables show it: JSON where it is a choice of kinds, else the bare word or number."""
    match default:
        case None | ():
            return "none"
        case "auto" | "all-linear":
            return f'"{default}"'
        case bool():
            return str(default).lower()
        case float():
            return f"{default:g}"
        case _:
            return str(default)


def test_every_setting_is_documented():
    names = [f"GRAFT_{name.upper()}" for name in Settings.model_fields]
    assert documented("docs/operations.md", names) == []


def test_every_knob_of_a_job_is_documented():
    knobs = [
        name
        for spec in (*SPECS, HyperparametersRequest, DPOHyperparametersRequest, TrainingRequest)
        for name in spec.model_fields
    ]
    assert documented("docs/api.md", knobs) == []


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_every_field_of_a_method_has_a_row_on_its_page(spec):
    assert without_row(spec, page_of(spec)) == []


def test_a_field_without_a_row_on_its_page_is_found():
    page = re.sub(r"(?m)^\| `target_r` \|.*\n", "", page_of(AdaLoraSpec))
    assert "`target_r`" in page  # other rows speak of it; that is not enough
    assert without_row(AdaLoraSpec, page) == ["target_r"]


def test_a_default_that_is_not_the_field_s_own_is_found():
    page = page_of(LoraSpec).replace("| `r` | 16 |", "| `r` | 8 |")
    assert without_row(LoraSpec, page) == ["r"]


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs/methods").glob("*.md")))
def test_every_link_between_pages_of_methods_leads_somewhere(page):
    folder = ROOT / "docs/methods"
    links = re.findall(r"\]\(([^)#:]+)", (folder / page).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (folder / link).exists()] == []


def named_tests(page: str) -> set[str]:
    return set(re.findall(r"`(test_\w+)`", page))


def written_tests() -> set[str]:
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return {name for text in texts for name in re.findall(r"(?m)^def (test_\w+)\(", text)}


def test_every_trap_of_training_has_a_row_whose_tests_exist():
    page = (ROOT / "docs/training-traps.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (\d+) \|.*\|$", page)
    assert [int(row) for row in rows] == list(range(1, 21))
    for line in re.findall(r"(?m)^\| \d+ \|.*$", page):
        assert named_tests(line), line
    assert named_tests(page) - written_tests() == set()


def test_a_test_that_is_not_there_is_found():
    assert named_tests("| 1 | x | `test_nobody_wrote` |") - written_tests() == {"test_nobody_wrote"}


def test_every_route_is_documented(tmp_path):
    paths = create_app(Settings(data_dir=tmp_path)).openapi()["paths"]
    routes = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    assert len(routes) > 20
    assert documented("docs/api.md", routes) == []


@pytest.mark.parametrize("room", ["core", "api", "worker"])
def test_the_tree_in_the_readme_names_every_file_of(room):
    tree = tree_of_readme()
    files = {
        str(p.relative_to(ROOT)) for p in (ROOT / room).rglob("*.py") if p.stat().st_size and p.name != "__init__.py"
    }
    assert {path for path in tree if path.startswith(f"{room}/")} - {"core/methods/__init__.py"} == files


def test_a_word_that_is_not_documented_is_found():
    assert documented("docs/operations.md", ["GRAFT_NO_SUCH_SETTING"]) == ["GRAFT_NO_SUCH_SETTING"]


def tree_of_readme() -> set[str]:
    """The .py paths of the indented tree that the README shows between <!-- tree --> marks."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- tree -->")[1]
    paths, folders = set(), []
    for line in block.splitlines():
        match = re.match(r"^( *)(\S+?)(/?)(?:\s{2,}(.+))?$", line)
        if not match or line.startswith("```"):
            continue
        depth, name, is_folder, phrase = len(match[1]) // 2, match[2], match[3], match[4]
        folders = folders[:depth]
        if is_folder:
            folders.append(name)
        elif name.endswith(".py"):
            assert phrase, f"{name} stands in the tree without a phrase"
            paths.add("/".join([*folders, name]))
    return paths
