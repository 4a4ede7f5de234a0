"""Documentation that cannot rot: what a user may set, call or open is described, and what is described exists."""

import re
from pathlib import Path

import pytest

from api.main import create_app
from core.settings import Settings
from core.specs.method import SPECS
from core.specs.training import HyperparametersRequest, TrainingRequest

ROOT = Path(__file__).parent.parent


def documented(page: str, words: list[str]) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [word for word in words if f"`{word}`" not in text]


def test_every_setting_is_documented():
    names = [f"GRAFT_{name.upper()}" for name in Settings.model_fields]
    assert documented("docs/operations.md", names) == []


def test_every_knob_of_a_job_is_documented():
    knobs = [name for spec in (*SPECS, HyperparametersRequest, TrainingRequest) for name in spec.model_fields]
    assert documented("docs/api.md", knobs) == []


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
