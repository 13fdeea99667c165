# make demo · make test: the two that matter. PYTHON=python3.12 make … takes another interpreter.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
PIP    := $(RUN) -m pip --disable-pip-version-check --quiet
SOURCES := $(shell find ingest -name '*.pyx' -o -name '*.pxd' -o -path '*/csrc/*' -type f)

.PHONY: help venv build dev demo test dist smoke lint format bench peers soak faults mutants screenshot clean

help:
	@echo "make demo    real files in, verified and read back, with a killed worker and a restart on the way;"
	@echo "             then a directory tree through a gateway, with curl and ingest put"
	@echo "make test    all tests; ARGS='-k name' takes some"
	@echo "make lint    ruff and mypy        make format  lay the code out"
	@echo "make bench   all benchmarks     make smoke   a few tests in seconds      make clean   as after the clone"
	@echo "make peers   benchmarks against Redis, NATS and SeaweedFS, where they are installed"
	@echo "make soak    200 cycles of kill -9 under load, everything read back"
	@echo "make faults PART=n   part n of the proof, 1 to 10, in its long form (docs/faults.md)"
	@echo "make mutants         deliberate faults, each of which a test must notice (docs/faults.md)"
	@echo "make screenshot   the pictures of the page in docs/, with Chromium"
	@echo "make dist    the source archive, installed and tried in a bare environment (RELEASING.md)"
	@echo "make build   only build, into $(VENV)"

# Stamps: each step runs again only when what it depends on is newer.
$(VENV)/.made: tools/check_machine.py
	@command -v $(PYTHON) >/dev/null || { echo "cannot build: there is no $(PYTHON) (set PYTHON=python3.11)" >&2; exit 1; }
	@$(PYTHON) tools/check_machine.py
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install 'setuptools>=77' 'Cython>=3.1'
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml setup.py
	@echo "building and installing ingest into $(VENV)"
	@INGEST_BUILT_IN_PLACE=1 $(PIP) install --no-build-isolation --editable .
	@touch $@

# A header may be included by any of the extensions, so a change of one compiles all of them again.
$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	@force=; if test -e $@ && find ingest -path '*/csrc/*' -newer $@ | grep -q .; then force=--force; fi; \
	    $(RUN) setup.py --quiet build_ext --inplace $$force
	@touch $@

$(VENV)/.dev: $(VENV)/.built pyproject.toml
	@echo "installing the tools for tests into $(VENV)"
	@INGEST_BUILT_IN_PLACE=1 $(PIP) install --no-build-isolation --editable '.[dev]'
	@touch $@

venv: $(VENV)/.made
build: $(VENV)/.built
dev: $(VENV)/.built $(VENV)/.dev

demo: build
	@$(RUN) tools/demo.py

# ARGS='-k name' or ARGS=tests/test_x.py takes some. The tests of a file run in one process, JOBS files at a time.
JOBS ?= 2
test: dev
	@$(RUN) -m pytest --numprocesses=$(JOBS) --dist=loadfile $(ARGS)

# The source archive, and in a bare environment what `pip install` makes of it: RELEASING.md.
dist: dev
	@rm -rf dist
	@$(RUN) -m build --no-isolation --sdist --outdir dist . >/dev/null
	@$(RUN) tools/try_archive.py dist/*.tar.gz

# Is it alive?
smoke: dev
	@$(RUN) -m pytest tests/test_smoke.py

lint: dev
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

format: dev
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

# ROWS=verify,restart takes some; RESULTS=FILE says where the JSON goes; INGEST_BENCH_DIR is on the disk that is measured.
bench: dev
	@$(RUN) -m pytest bench --timeout=0 -s --benchmark-quiet --rows='$(ROWS)' $(if $(RESULTS),--results='$(RESULTS)')

$(VENV)/.peers: $(VENV)/.dev
	@echo "installing NATS and SeaweedFS into $(VENV)"
	@INGEST_BUILT_IN_PLACE=1 $(PIP) install --no-build-isolation --editable '.[dev,peers]'
	@touch $@

# About twelve minutes. Redis and curl are the system's: apt-get install redis-server redis-tools curl. ROWS (peers,
# object_peers) and RESULTS as above; PLOT=FILE.png too.
peers: dev $(VENV)/.peers
	@$(RUN) -m pytest bench/peers.py bench/object_peers.py --timeout=0 -s --benchmark-quiet --command='make peers' \
	    --rows='$(ROWS)' \
	    --results='$(or $(RESULTS),bench/results/local/peers.json)'
	@$(RUN) -m bench.plot_peers '$(or $(RESULTS),bench/results/local/peers.json)' '$(or $(PLOT),bench/results/local/peers.png)'

# PART=1..10; SEED=s repeats a run; CASES=n runs fewer or more.
faults: dev
	@PYTHONPATH=tests $(RUN) -m faults --part '$(PART)' $(if $(SEED),--seed '$(SEED)') $(if $(CASES),--cases '$(CASES)') $(if $(ON),--on '$(ON)')

# 200 cycles of kill -9 under load: part 1, shorter.
soak: dev
	@PYTHONPATH=tests $(RUN) -m faults --part 1 --cases 200

# NAME='ack-early ...' takes some; CHECK=1 only says which of them no longer fit the source.
mutants: dev
	@$(RUN) -m mutants $(if $(CHECK),--check) $(NAME)

screenshot: dev
	@PYTHONPATH=tests $(RUN) tools/screenshot.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find ingest \( -name '*.so' -o -name '*.pyc' \) -delete
	find ingest \( -name '*.c' -o -name '*.html' \) ! -path 'ingest/csrc/*' ! -path '*/static/*' -delete
