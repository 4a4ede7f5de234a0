"""One worker without Celery, for tests of attempts: a real child, a real database and a real store."""

import threading

from core.records import jobs
from worker.crew import Crew
from worker.training import Workshop


class Worker:
    """Its attempts run in the test's own thread, or beside it."""

    def __init__(self, bench):
        self.bench = bench
        self.rung = []
        self.shop = Workshop(bench.settings, bench.db, bench.blobs, self.rung.append)

    def claim(self, job_id, owner="worker"):
        held = jobs.claim(self.bench.db, owner=owner, lease_s=self.bench.settings.lease_s, job_id=job_id)
        assert held, "nothing to claim"
        return held

    def attempt(self, job_id):
        """One attempt, now, whatever the wait before a further one."""
        self.bench.set(job_id, run_after=0)
        Crew(self.claim(job_id), self.shop).run()
        return self.bench.job(job_id)

    def attempts(self, job_id):
        """Until the job has ended, however often it is put back."""
        while (job := self.attempt(job_id)).state == "queued":
            assert job.attempt < job.max_attempts
        return job

    def attempt_new(self, faults, **changes):
        """A job that was attempted once: its id."""
        job_id = self.bench.submit(faults, **changes)
        self.attempt(job_id)
        return job_id

    def beside(self, job_id):
        """An attempt in a thread of its own."""
        crew = Crew(self.claim(job_id), self.shop)
        thread = threading.Thread(target=crew.run)
        thread.start()
        return crew, thread
