"""python -m worker.engine.main: serves one base model and all its adapters, with the settings of the environment."""

import os

# Idle threads of a product shall not burn a core that others share. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from core.settings import Settings
from worker.engine.process import serve

if __name__ == "__main__":
    serve(Settings())
