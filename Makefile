# make tune: the quick start.  make test: everything that CI checks.  make check-fast: while one works.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := env -u PYTHONPATH -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m
PYTEST := env -u PYTHONPATH -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
ROOMS := cli bilevel diffusion schedules rewards
JOBS ?= examples/guidance.yaml
# What is quick and broad: the house, the job's grammar, the run folder, every room's contract.
QUICK ?= tests/test_house.py tests/test_guard.py tests/schedules/test_clock.py tests/schedules/test_schedules_page.py \
	$(addprefix tests/rooms/test_,every_room.py documents.py estimators.py guidance_rules.py models.py optimizers.py) \
	$(addprefix tests/rooms/test_,samplers.py searchers.py pruners.py tunables.py) \
	tests/bilevel/test_verdict.py tests/diffusion/test_guidance.py tests/diffusion/test_sample.py \
	$(addprefix tests/cli/test_,catalog.py job.py gallery.py prompt_files.py run.py)

# Given with the command, QUICK=1 asks for a smoke test of a table; else it is the list above.
SMOKE = $(if $(and $(QUICK),$(filter command environment,$(firstword $(origin QUICK)))),--quick)

.PHONY: help tune test check check-fast format lint types arrows tests test-slow smoke batch bench paper-lambda paper-schedule emoji coverage clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/installed: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "genbo needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

tune: $(VENV)/installed  ## set up .venv and tune the guidance weight of the bundled model
	$(RUN) genbo tune examples/guidance.yaml $(ARGS)

test: check  ## everything that CI checks

check: format lint types arrows tests  ## format, lint, types, import arrows, tests

check-fast: format lint types arrows  ## the same with the quick tests alone, in under a minute; QUICK="..." are others
	$(PYTEST) $(QUICK)

format: $(VENV)/installed
	$(BIN)/ruff format --check .

lint: $(VENV)/installed
	$(BIN)/ruff check .

types: $(VENV)/installed .types/genbo
	$(BIN)/mypy

.types/genbo:  # mypy and import-linter cannot follow package-dir: show them the rooms under their import names
	mkdir -p $@
	for room in $(ROOMS); do ln -sfn ../../$$room $@/$$room; done
	for file in api/*; do ln -sfn ../../$$file $@/; done

arrows: $(VENV)/installed .types/genbo
	PYTHONPATH=.types $(BIN)/lint-imports --no-logo

tests: $(VENV)/installed
	$(PYTEST) --durations=15

test-slow: $(VENV)/installed  ## the tests that take minutes
	$(PYTEST) -m slow

coverage: $(VENV)/installed  ## which lines of the mathematics no test reaches
	$(PYTEST) --cov=genbo.bilevel --cov=genbo.diffusion --cov=genbo.schedules --cov=genbo.rewards --cov-report=term-missing

smoke: $(VENV)/installed  ## the whole command line on tiny models, in under two minutes
	$(PYTEST) tests/cli/test_smoke.py

batch: $(VENV)/installed  ## several jobs and one table: make batch JOBS="a.yaml b.yaml"
	$(RUN) genbo batch $(JOBS) $(ARGS)

bench: $(VENV)/installed  ## the sampler's overhead over the bare network calls that it makes
	$(RUN) benchmarks.overhead

paper-lambda: $(VENV)/installed  ## the paper's table of the KL strength; QUICK=1, or MODEL=path of your Stable Diffusion
	$(RUN) benchmarks.paper_lambda $(SMOKE) $(and $(MODEL),--model $(MODEL)) $(and $(CLIP),--clip $(CLIP)) $(and $(OUT),--out $(OUT)) $(ARGS)

paper-schedule: $(VENV)/installed  ## the paper's table of the noise schedule; QUICK=1, or DATA=path FEATURES=network
	$(RUN) benchmarks.paper_schedule $(SMOKE) $(and $(DATA),--data $(DATA)) $(and $(FEATURES),--features $(FEATURES)) $(and $(OUT),--out $(OUT)) $(ARGS)

emoji: $(VENV)/installed  ## rebuild the bundled models from the registries' packages (minutes on a GPU)
	$(BIN)/python -m pip install --quiet --editable '.[dev,emoji]'
	$(RUN) training.emoji.pack
	$(RUN) training.emoji.pack_judge
	$(RUN) training.emoji.train_diffusion
	$(RUN) training.emoji.train_clip
	$(RUN) training.emoji.train_style
	$(RUN) training.emoji.train_judge
	$(RUN) training.emoji.prompts
	$(RUN) training.emoji.evaluate
	$(RUN) training.emoji.evaluate_judge
	$(RUN) training.emoji.card

clean:
	rm -rf $(VENV) .types build dist *.egg-info
