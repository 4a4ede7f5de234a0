"""The laws of the house that a linter cannot see: what a fresh interpreter loads, and what no file may say."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("api", "core", "worker")
SOURCES = sorted(path for room in (*ROOMS, "migrations", "benchmarks") for path in (ROOT / room).rglob("*.py"))
HEAVY = ("torch", "transformers", "bitsandbytes")
TORCH_FREE = (
    *(
        "core.settings",
        "core.specs",
        "core.data.formats",
        "core.base.catalogue",
        "core.blobs",
        "core.records",
        "core.bell",
    ),
    *("api.main", "api.cli"),
)
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

PROBE = """
import importlib, json, pkgutil, sys
heavy, seen = sys.argv[1].split(","), {}
def load(name):
    module = importlib.import_module(name)
    seen[name] = [other for other in heavy if other in sys.modules]
    for child in pkgutil.iter_modules(getattr(module, "__path__", [])):
        load(f"{name}.{child.name}")
for name in sys.argv[2:]:
    load(name)
print(json.dumps(seen))
"""


def loaded_with(forbidden, *modules):
    """Which of the forbidden modules are loaded after each module (and all below it), in one fresh interpreter."""
    argv = [sys.executable, "-c", PROBE, ",".join(forbidden), *modules]
    probe = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert probe.returncode == 0, probe.stderr
    return json.loads(probe.stdout)


@pytest.mark.parametrize("room", TORCH_FREE)
def test_a_fresh_interpreter_that_loads_the_front_end_has_no_torch(room):
    assert {name: found for name, found in loaded_with(HEAVY, room).items() if found} == {}


def test_the_probe_sees_torch_where_it_is():
    assert loaded_with(HEAVY, "core.effects") == {"core.effects": ["torch"]}


def test_core_loads_neither_api_nor_worker_and_api_loads_no_worker():
    names = [path.name.removesuffix(".py") for path in (ROOT / "core").iterdir() if not path.name.startswith("_")]
    found = loaded_with(("api", "worker"), *(f"core.{name}" for name in sorted(names)))
    assert {name: others for name, others in found.items() if others} == {}
    assert {n: o for n, o in loaded_with(("worker",), "api").items() if o} == {}


def test_the_trainer_child_has_no_door_to_database_queue_or_secrets():
    doors = ("sqlalchemy", "celery", "kombu", "redis", "obstore", "core.records", "core.blobs", "core.settings")
    assert loaded_with(doors, "worker.trainer_process") == {"worker.trainer_process": []}


def test_only_the_4_bit_base_and_the_optimisers_load_bitsandbytes():
    assert importers_of({"bitsandbytes"}) == {"core/base/nf4.py", "core/optimisers.py"}


def test_only_the_queue_of_the_front_end_knows_celery():
    assert {path for path in importers_of({"celery", "kombu"}) if path.startswith("api/")} <= {"api/queue.py"}


def importers_of(packages):
    return {str(path.relative_to(ROOT)) for path in SOURCES if packages & imported(ast.parse(path.read_text()))}


def imported(tree):
    """The top-level packages that a file imports anywhere in it."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


def faults_of(source):
    """What a file says that none may: pickles, torch.load, shells, remote code, evaluated text."""
    tree = ast.parse(source)
    faults = [f"imports {name}" for name in sorted(imported(tree) & PICKLES)]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        if name in {"eval", "exec", "os.system", "os.popen", "yaml.load", "torch.load"}:
            faults.append(f"calls {name}")
        for keyword in call.keywords:
            is_off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in {"shell", "trust_remote_code", "allow_pickle"} and not is_off:
                faults.append(f"passes {keyword.arg}")
    return faults


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_unpickles_opens_a_shell_or_runs_foreign_code(path):
    assert faults_of(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle"),
        ("def f():\n    import dill.source", "imports dill"),
        ("torch.load('x')", "calls torch.load"),
        ("eval('1')", "calls eval"),
        ("exec('x = 1')", "calls exec"),
        ("os.system('ls')", "calls os.system"),
        ("subprocess.run('ls', shell=True)", "passes shell"),
        ("subprocess.run('ls', shell=flag)", "passes shell"),
        ("AutoModel.from_pretrained('x', trust_remote_code=True)", "passes trust_remote_code"),
        ("numpy.load('x', allow_pickle=True)", "passes allow_pickle"),
    ],
)
def test_the_search_finds_what_is_forbidden(source, fault):
    assert faults_of(source) == [fault]


def test_the_search_lets_innocents_pass():
    assert faults_of("model.eval()\nrun(['ls'], shell=False)\nsafetensors.torch.load_file('x')") == []


def test_every_init_is_empty_but_that_of_the_methods():
    full = {
        str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("__init__.py") if p.read_text().strip()
    }
    assert full <= {"core/methods/__init__.py"}


def too_long(source):
    """The functions with a body of more than 40 lines, its docstring aside, and a file of more than 300."""
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f.name for f in functions if f.end_lineno - body_starts_at(f) + 1 > 40]
    return [*long, *(["the file"] if source.count("\n") > 300 else [])]


def body_starts_at(function):
    first = function.body[0]
    is_docstring = ast.get_docstring(function) is not None
    return first.end_lineno + 1 if is_docstring else first.lineno


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.relative_to(ROOT).parts[0] in ROOMS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_file_exceeds_300_lines_and_no_function_40(path):
    assert too_long(path.read_text()) == []


def test_the_measure_finds_a_long_function():
    assert too_long("def f():\n" + "    x = 1\n" * 41) == ["f"]
    assert too_long("x = 1\n" * 301) == ["the file"]
