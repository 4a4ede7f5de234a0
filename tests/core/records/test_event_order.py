"""A reader who asks for what came after the last event that he saw misses none: events appear in their order."""

import threading

import pytest
from sqlalchemy import select

from core.records.events import Event, append
from core.records.jobs import Fenced
from core.records.tables import Job


def test_who_is_turned_away_says_so_behind_what_is_being_written(db, machine, make_job):
    job_id = make_job()
    zombie = machine.claim(job_id)
    machine.expire(job_id)
    held = machine.claim(job_id)

    def knock():
        with pytest.raises(Fenced):
            machine.beat(zombie, step=1)

    knocking = threading.Thread(target=knock)
    with db.writing() as session:
        session.scalars(select(Job).where(Job.id == job_id).with_for_update()).one()
        append(session, job_id, held.lease_epoch, [Event("step", "Step 1", step=1)])
        session.flush()
        knocking.start()
        knocking.join(0.5)
        append(session, job_id, held.lease_epoch, [Event("step", "Step 2", step=2)])
    knocking.join()
    # Numbered between the two it would be seen after the second, by a reader who asks for what is behind that one.
    assert machine.kinds(job_id)[-3:] == ["step", "step", "fenced"]
