# make <experiment> [opt=sgdp] [any.key=value ...] [GPUS=4]     one run; the same command resumes it
# make help                                                     what there is
PYTHON ?= python3
VENV   ?= .venv
GPUS   ?= 1
PY     := $(VENV)/bin/python
UV     := $(VENV)/bin/uv
READY  := $(VENV)/.ready

EXPERIMENTS := $(sort $(basename $(notdir $(wildcard configs/experiment/*.yaml))))
SWEEPS      := $(sort $(basename $(notdir $(wildcard configs/sweep/*.yaml))))

# A file that can be started is a target: scripts/dry_run.py is `make dry-run`, benchmarks/audio.py is `make
# benchmark-audio`. The first line of its docstring is its line in `make help`.
FILES       := $(shell grep -ls '^if __name__ == "__main__"' scripts/*.py benchmarks/*.py tests/reliability/[!t]*.py)
TOOLS       := $(filter-out $(EXPERIMENTS) $(SWEEPS),$(subst _,-,$(patsubst benchmarks/%.py,benchmark-%,\
	$(patsubst scripts/%.py,%,$(patsubst tests/reliability/%.py,%,$(FILES))))))
ALIASES     := benchmark benchmark-gpu

# What was typed as key=value goes on to the program letter by letter, but for what is meant for make itself.
KEYS = $(filter-out GPUS PYTHON VENV part,$(foreach word,$(MAKEOVERRIDES),$(firstword $(subst =, ,$(word)))))
ARGS = $(foreach _key,$(KEYS),$(if $(filter command,$(firstword $(origin $(_key)))),'$(_key)=$(subst ','\'',$(value $(_key)))'))

TARGETS := help setup mini data docs slurm gpu-day test test-slow test-gpu check clean $(ALIASES) $(TOOLS) $(EXPERIMENTS) $(SWEEPS)
.PHONY: $(TARGETS)
.DEFAULT_GOAL := help

# `make imagenet-resnet18 opt adamp` must not train SGD: a stray word is refused before anything starts.
STRAY := $(firstword $(filter-out $(TARGETS) $(READY),$(MAKECMDGOALS)))
ifneq ($(STRAY),)
$(error $(or $(shell $(PYTHON) -m launch.words '$(STRAY)' $(TARGETS)),$(STRAY) is no target of make); options are key=value)
endif

help: ## this list
	@{ echo "make NAME [key=value ...]     any option of the configuration is a key: opt=adamp opt.weight_decay=1e-3 train.seed=1"; \
	echo; \
	echo "Experiments (scale=mini, the default, runs offline in minutes; scale=full data_root=... is the paper's setting)"; \
	for name in $(EXPERIMENTS); do echo "$$name|$$(sed -n '2s/^# *//p' configs/experiment/$$name.yaml)"; done; \
	echo "Sweeps (one run a cell; finished cells are skipped)"; \
	for name in $(SWEEPS); do echo "$$name|$$(sed -n '2s/^# *//p' configs/sweep/$$name.yaml)"; done; \
	echo "Tools"; \
	{ sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' Makefile; for tool in $(TOOLS); do \
	  file=$$(echo $$tool | tr - _); set -- scripts/$$file.py benchmarks/$${file#benchmark_}.py tests/reliability/$$file.py; \
	  for file; do test -f $$file && echo "$$tool|$$(sed -n '1{s/^"""//;s/[."]*$$//;p;}' $$file)" && break; done; done; } | sort; \
	echo; \
	echo "Every option: $(PY) scripts/train.py --help (after make setup)"; \
	} 2>/dev/null | awk -F'|' 'NF > 1 {printf "  %-26s %s\n", $$1, substr($$0, length($$1) + 2); next} {print}' || true

setup: $(READY) ## build .venv from the hash-pinned lock (every other target does it by itself)

# uv is an ordinary package and much faster than pip, but it does not read pip's configuration: where a site has a
# mirror of its own it may find nothing, so plain pip stands behind it.
$(READY): requirements.lock pyproject.toml
	@echo "Setting up $(VENV) from requirements.lock: about 5 GB, mostly torch's CUDA libraries; a minute with a fast network."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; use make PYTHON=python3.12 ...")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@{ $(PY) -m pip install -q 'uv>=0.9,<1' && $(UV) pip install --compile-bytecode --python $(PY) --require-hashes -r requirements.lock; } \
	  || $(PY) -m pip install --require-hashes -r requirements.lock
	@$(PY) -m pip uninstall -q -y adamp 2>/dev/null || true  # the name of this distribution before 0.4.0
	@$(PY) -m pip install -q --no-deps --no-build-isolation -e .
	@$(PY) -m adamp.kernels.cpu || echo "The suite works without the fused CPU kernel, with slower steps of AdamP and SGDP."
	@touch $@

$(EXPERIMENTS): $(READY)
	@$(PY) -m scripts.train experiment=$@ gpus=$(GPUS) $(ARGS)

# `make projection-effect part=conv` is the sweep projection-effect-conv.
PART = $(if $(part),-$(part))
$(SWEEPS): $(READY)
	@$(PY) -m scripts.train sweep=$@$(PART) gpus=$(GPUS) hydra.mode=MULTIRUN $(ARGS)
	@if test -f scripts/$(subst -,_,$@).py; then $(PY) -m scripts.$(subst -,_,$@); else $(PY) -m scripts.sweep $@$(PART) $(ARGS); fi

# Sweeps that share runs stand in one half, in this order, so that no run is made twice at once.
MINI_A := table-1 figure-f1 figure-f2 figure-f3 figure-f4 table-b1 table-2 table-d4
MINI_B := aws-table-1 aws-table-2 aws-table-3 aws-figure-1 aws-figure-2 aws-figure-4 aws-figure-5 aws-figure-6 \
	adarem-table-1 adarem-table-2 adarem-figure-1 adarem-figure-2 adarem-figure-4 adarem-figure-5 table-d3

mini: $(READY) ## every small classification table and figure, two runs at a time; the same command goes on
	@for half in "$(MINI_A)" "$(MINI_B)"; do \
	  ( for sweep in $$half; do $(MAKE) --no-print-directory $$sweep $(ARGS) || echo "$$sweep: not all cells finished"; done ) & done; wait

$(filter-out doctor,$(TOOLS)): $(READY)

tables: OPTIONS := --page --figures
doctor: PY := $(if $(wildcard $(PY)),$(PY),$(PYTHON))
$(TOOLS):
	@$(PY) -m $(subst /,.,$(basename $(firstword $(wildcard \
	  scripts/$(subst -,_,$@).py benchmarks/$(subst -,_,$(@:benchmark-%=%)).py tests/reliability/$@.py)))) $(OPTIONS) $(ARGS)

benchmark: benchmark-engine ## the same as benchmark-engine
benchmark-gpu: benchmark-gpu-optimizers ## the same as benchmark-gpu-optimizers

data: $(READY) ## fetch and verify all of Fashion-MNIST and MNIST into the cache (the folder ADAMP_DATA, or ~/.cache/adamp/data)
	@$(PY) -m scripts.prepare.fashion_mnist $(ARGS)
	@$(PY) -m scripts.prepare.mnist $(ARGS)

slurm: ## install SLURM on Debian, as root, for the tests of launcher=slurm
	@command -v slurmctld >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends slurm-wlm munge; }

gpu-day: ## all that a CUDA device can show, in minutes; with the Python at hand, without building .venv
	@$(or $(wildcard $(PY)),$(PYTHON)) -m benchmarks.gpu_day $(ARGS)

test: $(READY) check ## run the checks and the test suite (what CI runs)
	@$(PY) -m pytest -q -n auto --dist loadfile

test-slow: $(READY) ## run the tests that take minutes
	@$(PY) -m pytest -q -m slow

test-gpu: $(READY) ## run the tests that need a CUDA device
	@$(PY) -m pytest -q -m gpu

check: $(READY) ## format, lint and type checks (what pre-commit runs)
	@$(PY) -m ruff format --check . && $(PY) -m ruff check . && $(PY) -m mypy

docs: $(READY) ## build/docs/index.html: the pages, and a reference from the docstrings; needs no network
	@$(PY) -m sphinx -q -E -W --keep-going -c docs . build/docs && echo build/docs/index.html

clean: ## remove .venv and caches; results stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info build
