from job_bench import wait_until
from sqlalchemy.exc import OperationalError

from worker.presence import Pulse


def test_a_pulse_goes_on_while_the_database_is_away_and_ends_when_told():
    said = []

    def say():
        said.append(1)
        if len(said) == 2:
            raise OperationalError("INSERT", {}, Exception("gone"))

    pulse = Pulse(say, beat_s=0.01)
    pulse.start()
    wait_until(lambda: len(said) >= 4)
    pulse.stop()
    pulse.stop()
    ended_at = len(said)
    assert not pulse._thread.is_alive()
    assert len(said) == ended_at
