"""Who claims when many want to: always one, on both databases, in threads and in processes."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from sqlalchemy import func, select

from core.records import jobs
from core.records.jobs import Fenced, NotCancellable
from core.records.tables import Adapter, Job

WANTED = 8


def together(count, act):
    """What each of count threads got when all began at once."""
    barrier = Barrier(count)

    def one(n):
        barrier.wait()
        return act(n)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_of_many_threads_that_claim_a_job_one_gets_it(machine, make_job):
    for _ in range(10):
        job_id = make_job()
        claims = together(WANTED, lambda n, job_id=job_id: machine.claim(job_id, owner=f"worker {n}"))
        assert [held.lease_epoch for held in claims if held] == [1]


def test_a_claim_that_looks_first_and_writes_later_is_made_twice(db, machine, make_job):
    """The negative control: the races here are real, and it is the one guarded UPDATE that decides them."""
    job_id = make_job()
    looked = Barrier(WANTED)

    def careless_claim(n):
        with db.session() as session:
            is_free = session.get_one(Job, job_id).state == "queued"
        looked.wait()
        if is_free:
            machine.set(job_id, state="running", lease_owner=f"worker {n}")
        return is_free

    assert sum(together(WANTED, careless_claim)) == WANTED


def test_of_many_heirs_of_a_dead_worker_one_gets_the_job(machine, make_job):
    job_id = make_job(max_attempts=99)
    for epoch in range(1, 11):
        claims = together(WANTED, lambda n: machine.claim(job_id, owner=f"worker {n}"))
        winners = [held for held in claims if held]
        assert [held.lease_epoch for held in winners] == [epoch]
        machine.beat(winners[0], step=epoch)
        machine.expire(job_id)


def test_threads_that_take_what_comes_share_all_jobs_out(machine, make_job):
    made = [make_job() for _ in range(30)]

    def take_all(n):
        taken = []
        while (held := machine.claim(owner=f"worker {n}")) is not None:
            taken.append(held.job_id)
        return taken

    taken = [job_id for ids in together(4, take_all) for job_id in ids]
    # On Postgres a claim skips what another holds at that moment, so a thread may stop early; nothing is taken twice.
    assert len(taken) == len(set(taken))
    assert sorted(taken + take_all(9)) == sorted(made)


CLAIM_ALL = """
import sys
from core.records import jobs
from core.records.database import Database
db = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for job_id in sys.argv[2:]:
    if jobs.claim(db, owner="child", lease_s=60, job_id=job_id):
        print(job_id)
db.close()
"""


def test_of_processes_that_claim_the_same_jobs_one_gets_each(database_url, make_job):
    made = [make_job() for _ in range(20)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM_ALL, database_url, *made],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    claimed = [line for child in children for line in child.communicate()[0].split()]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(claimed) == sorted(made)


def test_a_job_ends_once_however_finishing_and_cancelling_meet(db, machine, make_job):
    for _ in range(10):
        job_id = make_job()
        held = machine.claim(job_id)

        def finish(held=held):
            try:
                machine.succeed(held, letter="c")
            except jobs.CancelRequested:
                jobs.confirm_cancelled(db, held)
                return "cancelled"
            return "succeeded"

        def cancel(job_id=job_id):
            try:
                return machine.cancel(job_id).state
            except NotCancellable:
                return "too late"

        outcome, answer = together(2, lambda n, acts=(finish, cancel): acts[n]())
        job = machine.job(job_id)
        with db.session() as session:
            adapters = session.scalar(select(func.count()).select_from(Adapter).where(Adapter.job_id == job_id))
        assert job.state == outcome
        # The customer is told the truth: too late exactly if the job has its adapter.
        assert (answer == "too late") == (outcome == "succeeded") == (adapters == 1)


def test_a_job_claimed_and_cancelled_at_once_is_one_of_both(machine, make_job):
    for _ in range(10):
        job_id = make_job()
        held, answer = together(
            2, lambda n, job_id=job_id: machine.cancel(job_id).state if n else machine.claim(job_id)
        )
        job = machine.job(job_id)
        assert (held is None, job.state) == (answer == "cancelled", answer)
        assert (job.cancel_requested_at is not None) is True


def test_two_holders_of_one_epoch_cannot_both_finish(machine, make_job):
    """A worker that lost the answer to its own commit tries again: the second time finds the job ended."""
    make_job()
    held = machine.claim()

    def finish(_):
        try:
            return machine.succeed(held).name
        except Fenced:
            return None

    names = together(4, finish)
    assert len([name for name in names if name]) == 1
