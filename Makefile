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

# What was typed as key=value goes on to the program, but for what is meant for make itself.
ARGS = $(filter-out GPUS=% PYTHON=% VENV=%,$(MAKEOVERRIDES))

.PHONY: help setup mini test test-slow test-gpu check data report tables claims verify-results status retry tune slurm soak corpus fuzz load doctor dry-run toy2d rosenbrock3d theory gallery benchmark benchmark-optimizers benchmark-gpu benchmark-attack benchmark-audio benchmark-loader imagenet-check plan resnet18-speed docs clean $(EXPERIMENTS) $(SWEEPS)
.DEFAULT_GOAL := help

help: ## this list
	@echo "make NAME [key=value ...]     any option of the configuration is a key: opt=adamp opt.weight_decay=1e-3 train.seed=1"
	@echo
	@echo "Experiments (scale=mini, the default, runs offline in minutes; scale=full data_root=... is the paper's setting)"
	@for f in $(EXPERIMENTS); do printf '  %-22s %s\n' $$f "$$(sed -n '2s/^# *//p' configs/experiment/$$f.yaml)"; done
	@echo "Sweeps (one run a cell; finished cells are skipped)"
	@for f in $(SWEEPS); do printf '  %-22s %s\n' $$f "$$(sed -n '2s/^# *//p' configs/sweep/$$f.yaml)"; done
	@echo "Tools"
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1|\2/p' Makefile | sort | awk -F'|' '{printf "%-24s %s\n", $$1, $$2}'
	@echo
	@echo "Every option: $(PY) scripts/train.py --help (after make setup)"

setup: $(READY) ## build .venv from the hash-pinned lock (every other target does it by itself)

# uv is an ordinary package and much faster than pip, but it does not read pip's configuration: where a site has a
# mirror of its own it may find nothing, so plain pip stands behind it.
$(READY): requirements.lock pyproject.toml
	@echo "Setting up $(VENV) from requirements.lock: about 5 GB, mostly torch's CUDA libraries; a minute with a fast network."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; use make PYTHON=python3.12 ...")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@{ $(PY) -m pip install -q 'uv>=0.9,<1' && $(UV) pip install -q --compile-bytecode --python $(PY) --require-hashes -r requirements.lock; } \
	  || $(PY) -m pip install -q --require-hashes -r requirements.lock
	@$(PY) -m pip install -q --no-deps --no-build-isolation -e .
	@$(PY) -m adamp.kernels.cpu || echo "The suite works without the fused CPU kernel, with slower steps of AdamP and SGDP."
	@touch $@

$(EXPERIMENTS): $(READY)
	@$(PY) scripts/train.py experiment=$@ gpus=$(GPUS) $(ARGS)

$(SWEEPS): $(READY)
	@$(PY) scripts/train.py sweep=$@ gpus=$(GPUS) hydra.mode=MULTIRUN $(ARGS)
	@script=scripts/$(subst -,_,$@).py; if test -f $$script; then $(PY) $$script; else $(PY) scripts/sweep.py $@ $(ARGS); fi

# Sweeps that share runs stand in one half, in this order, so that no run is made twice at once.
MINI_A := table-1 figure-f1 figure-f2 figure-f3 figure-f4 table-b1 table-2 table-d4
MINI_B := aws-table-1 aws-table-2 aws-table-3 aws-figure-1 aws-figure-2 aws-figure-4 aws-figure-5 aws-figure-6 \
	adarem-table-1 adarem-table-2 adarem-figure-2 adarem-figure-4 adarem-figure-5 table-d3

mini: $(READY) ## every small classification table and figure, two runs at a time; the same command goes on
	@for half in "$(MINI_A)" "$(MINI_B)"; do \
	  ( for sweep in $$half; do $(MAKE) --no-print-directory $$sweep $(ARGS) || echo "$$sweep: not all cells finished"; done ) & done; wait

report: $(READY) ## one static site of all runs: results/reports/index.html (experiment=NAME: that one's pages)
	@$(PY) scripts/report.py $(ARGS)

tables: $(READY) ## write the records, the tables and README's figures and table from the runs
	@$(PY) scripts/tables.py --readme --figures $(ARGS)

data: $(READY) ## fetch and verify all of Fashion-MNIST and MNIST into the cache (the folder ADAMP_DATA, or ~/.cache/adamp/data)
	@$(PY) scripts/prepare/fashion_mnist.py $(ARGS)
	@$(PY) -m scripts.prepare.mnist $(ARGS)

claims: $(READY) ## the papers' claims, each with the verdict that the records give it
	@$(PY) scripts/claims.py $(ARGS)

verify-results: $(READY) ## make every committed table and figure again from the records, and compare
	@$(PY) scripts/verify_results.py $(ARGS)

status: $(READY) ## runs finished, running, waiting, failed: losses, rates, time left, reasons (sweep=NAME, experiment=NAME)
	@$(PY) scripts/status.py $(ARGS)

retry: $(READY) ## start again what failed, was interrupted or never started, by the words each run recorded
	@$(PY) scripts/retry.py $(ARGS)

tune: $(READY) ## the same number of runs for every optimizer over rate and decay, the choice, and how much it matters
	@$(PY) scripts/tune.py $(ARGS)

slurm: ## install SLURM on Debian, as root, for the tests of launcher=slurm
	@command -v slurmctld >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends slurm-wlm munge; }

soak: $(READY) ## kill runs of every task at kills=100 random moments; each must end as the undisturbed one
	@$(PY) tests/reliability/soak.py $(ARGS)

corpus: $(READY) ## damaged files for every reader: each refused by name, counted, or without effect
	@$(PY) tests/reliability/corpus_command.py $(ARGS)

fuzz: $(READY) ## mutated files for every parser, for minutes=10
	@$(PY) tests/reliability/fuzz.py $(ARGS)

load: $(READY) ## cells=1000, lines=10000000, processes=64: memory and time
	@$(PY) tests/reliability/load.py $(ARGS)

doctor: ## what this machine has for the suite, what is missing, and what to do about it
	@if test -x $(PY); then $(PY) scripts/doctor.py $(ARGS); else $(PYTHON) scripts/doctor.py $(ARGS); fi

toy2d: $(READY) ## the AdamP paper's Figure 1 and videos: the published norms and losses, a figure, an animation
	@$(PY) scripts/toy2d.py $(ARGS)

rosenbrock3d: $(READY) ## the AdamP paper's Figure 3: the published path, peak and norms, and a search of the learning rate
	@$(PY) scripts/rosenbrock3d.py $(ARGS)

theory: $(READY) ## check every closed-form claim of the three papers, and that wrong versions of it fail
	@$(PY) scripts/theory.py $(ARGS)

gallery: $(READY) ## one static page with the toys' figures and the claims beside the published numbers
	@$(PY) scripts/gallery.py $(ARGS)

imagenet-check: $(READY) ## verify a copy of ImageNet (data_root=...): classes, counts, every picture; writes a report
	@$(PY) scripts/imagenet_check.py $(ARGS)

plan: $(READY) ## steps, FLOPs, memory and GPU hours of experiment=NAME or sweep=NAME, before it is started
	@$(PY) scripts/plan.py $(ARGS)

dry-run: $(READY) ## two steps of every ImageNet experiment at full size, on noise: does it build, fit and run
	@$(PY) scripts/dry_run.py $(ARGS)

resnet18-speed: $(READY) ## share of data, forward, backward, optimizer and probes in a step, for each optimizer
	@$(PY) scripts/resnet18_speed.py $(ARGS)

benchmark-audio: $(READY) ## time the harmonic front end against torchaudio's, and decoding
	@$(PY) benchmarks/audio.py $(ARGS)

benchmark-loader: $(READY) ## time the loader, folders and shards, against timm's and torchvision's
	@$(PY) benchmarks/loader.py $(ARGS)

benchmark: $(READY) ## time the engine against a bare loop, and the probes, interleaved in one run
	@$(PY) benchmarks/engine.py $(ARGS)

benchmark-optimizers: $(READY) ## time AdamP and SGDP against torch's fused optimizers and other packages' AdamP and SGDP
	@$(PY) benchmarks/optimizers.py $(ARGS)

benchmark-attack: $(READY) ## time a step of adversarial training against the passes it cannot do without
	@$(PY) benchmarks/attack.py $(ARGS)

benchmark-gpu: $(READY) ## the same on a CUDA device, and the share of a whole training step
	@$(PY) benchmarks/gpu_optimizers.py $(ARGS)

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
