# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv once and reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: demo test test-system browser lint bench clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	mkdir -p demo
	$(BIN)/flashvsr run assets/bbb.mp4 demo/bbb_4x.mp4 --segment-frames 32 --force
	@echo "The enlarged clip is demo/bbb_4x.mp4."

# Every file in one process: fixtures are made once per file.
PYTEST := $(BIN)/python -m pytest --dist loadfile --tb=short -rfEs

# Several processes with as many threads as cores each: OpenMP's threads must not spin while they wait for one another.
test test-system: export OMP_WAIT_POLICY := PASSIVE

test: $(STAMP)
	$(PYTEST) --numprocesses 3 -m "not system and not gpu" --durations=15  # one more than cores: many wait for servers

# Prefect's UI and the report are looked at in Debian's Chromium.
browser:
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		$(SUDO) sh -c 'apt-get update && apt-get install -y chromium chromium-driver'

test-system: $(STAMP) browser
	$(PYTEST) --numprocesses 2 -m "system and not gpu" --timeout=1200 --durations=30

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m tests.bench.preroll
	$(BIN)/python -m tests.bench.cpu
	$(BIN)/python -m tests.bench.scaling stages
	$(BIN)/python -m tests.bench.scaling workers
	$(BIN)/python -m tests.bench.hdr
	$(BIN)/python -m tests.bench.seeing

clean:
	rm -rf $(VENV) demo
