# Each command sets up what it needs. Only Python 3.11 or later is expected to be there.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check
export PIP_NO_INPUT = 1

.PHONY: help run demo test journey faults screenshots paint bench lint lock clean

help: ## say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

.venv/torch: Makefile
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Graft needs Python 3.11 or later; this is $$($(PYTHON) --version). Set PYTHON=…"; exit 1; }
	@echo "Installing torch (once) …"
	@$(PIP) --no-deps torch==2.13.0
	@touch $@

.venv/run: .venv/torch requirements/run.lock
	@echo "Installing the locked packages (once) …"
	@$(PIP) --no-deps --require-hashes -r requirements/run.lock
	@touch $@

# Triton has no place in dev.lock: uv leaves it out (see pyproject.toml), for a CUDA build of torch comes with its own.
.venv/dev: .venv/torch requirements/dev.lock requirements/triton.lock
	@echo "Installing the locked packages for development (once) …"
	@$(PIP) --no-deps --require-hashes -r requirements/dev.lock
	@$(PIP) --no-deps --require-hashes -r requirements/triton.lock
	@touch $@ .venv/run

# Older openai clients, which the tests drive the API with beside the newest one: requirements/openai-N.lock.
.cache/openai: .venv/dev requirements/openai-1.lock requirements/openai-2.lock
	@echo "Installing older openai clients for the tests (once) …"
	@rm -rf $@
	@for major in 1 2; do \
	  $(PIP) --no-deps --require-hashes --target $@/$$major -r requirements/openai-$$major.lock || { rm -rf $@; exit 1; }; \
	done
	@touch $@

run: .venv/run ## start the whole service on this machine
	@exec .venv/bin/python -m api.cli up

demo: .venv/run ## set up, fine-tune two adapters, serve them with the base in one batch, print a table
	@exec .venv/bin/python -m benchmarks.demo

test: .venv/dev .cache/openai ## every test that a machine without a GPU can run
	@exec .venv/bin/python -m pytest -n 2 --dist loadfile

journey: .venv/dev ## upload, train and generate through every real process
	@exec .venv/bin/python -m pytest -m journey

faults: .venv/dev ## kill and deceive workers, and find every job finished once
	@exec .venv/bin/python -m pytest tests/faults tests/journeys/test_faults_journey.py

screenshots: .venv/dev ## every page of the dashboard into docs/images (needs a Chromium)
	@.venv/bin/python tests/admin/screenshots.py

paint: .venv/dev ## how soon each page of the dashboard is seen (needs a Chromium)
	@.venv/bin/python tests/admin/first_paint.py

bench: .venv/dev ## the papers' claims on a toy model, then six methods on CLINC150 (needs its data)
	@.venv/bin/python -m benchmarks.claims && .venv/bin/python -m benchmarks.methods

lint: .venv/dev ## ruff, mypy, import laws
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports --no-cache

lock: .venv/dev ## resolve requirements/*.lock anew
	@.venv/bin/pip install --quiet uv
	@for set in "run --extra worker --extra embedded" "dev --extra worker --extra embedded --extra dev" "worker --extra worker" "api"; do \
	  set -- $$set; name=$$1; shift; \
	  .venv/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header $$@ pyproject.toml -o requirements/$$name.lock; \
	done

clean: ## remove what the commands above made, but for data
	@rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache
