# Every target sets up .venv by itself: with uv where it is on the PATH, else with venv and pip.

PYTHON ?= python3
JOBS ?= 2
SEED ?= 0
ARGS ?=
CHIPS ?= v5e v5p v6e
SUITE ?= rollout
EXTRAS ?= test

JAX_PLATFORMS ?= cpu
export JAX_PLATFORMS
export ALLOW_MULTIPLE_LIBTPU_LOAD = 1

EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
COMMA := ,
BIN := .venv/bin
LAYERS := core kernels models rl launch
READY := .venv/.ok
TRITON := .venv/.triton-ok

.PHONY: help demo demo-small demo-base sections-base pipelines ablate crash bench bench-kernels block-sizes bench-tunix tunix-env test test-long quick lint types wheel wheel-check build-file golden parity clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         train a tiny Gemma 3 on this machine (SEED=0, ARGS='--set key=value')"
	@echo "make demo-small   the same, smaller: what .ci/run does"
	@echo "make pipelines    both pipelines whole, on this machine: SFT, GRPO, gates, distillation, reports (12 minutes)"
	@echo "make ablate       what each part of the reward does (ARGS=--train: in training runs, hours)"
	@echo "make demo-base    pretrain the base model that the demo starts from; make sections-base: that of think_first_tiny"
	@echo "make bench        check the kernels, then time rollouts and updates (ARGS=--compare=OLD.json)"
	@echo "make bench-kernels    estimated TPU cycles of the kernels and their peers (no TPU needed; CHIPS='v5e v5p v6e')"
	@echo "make block-sizes  try the kernels' block sizes for those chips, and write the best into kernels/block_sizes"
	@echo "make bench-tunix  rollouts of Tunix and ours in turn; SUITE=step: whole steps; SUITE=learning: hours (make tunix-env: 3 GB)"
	@echo "make test         lint, types, wheel-check and the tests (15 minutes); make test-long: those that take longest"
	@echo "make quick        lint and the tests that are not slow"
	@echo "make crash        kill training at every point, 60 times, and compare (an hour; ARGS='life' for one of its lives)"
	@echo "make lint | types | wheel-check    one of them"
	@echo "make wheel        build dist/thinkfirst-*.whl, which thinkfirst-pod launches"
	@echo "make build-file   write BUILD (Bazel) from the tree"
	@echo "make golden       write the golden files anew, by transformers, PEFT and Tunix (installs them: 3 GB)"
	@echo "make parity       compare with those that are installed, live (ARGS=--seed=5 for other weights)"
	@echo "make clean        remove .venv, .build and what they left behind"

demo: $(READY)
	$(BIN)/python -m thinkfirst.launch.train --recipe=demo --set seed=$(SEED) $(ARGS)

demo-small: $(READY)
	$(BIN)/python -m thinkfirst.launch.train --recipe=demo_small --workdir=runs/demo_small --set seed=$(SEED) $(ARGS)

# No data, no download: a tiny Gemma and problems made here, by the code and stages of a run on a slice.
pipelines: $(READY)
	$(BIN)/python -m thinkfirst.launch.train --recipe=show_work_tiny --set seed=$(SEED) $(ARGS)
	$(BIN)/python -m thinkfirst.launch.train --recipe=think_first_tiny --set seed=$(SEED) $(ARGS)

ablate: $(READY)
	$(BIN)/python -m thinkfirst.launch.ablate $(ARGS)

demo-base: $(READY)
	$(BIN)/python -m thinkfirst.launch.train --recipe=demo_base --set seed=$(SEED) $(ARGS)

sections-base: $(READY)
	$(BIN)/python -m thinkfirst.launch.train --recipe=sections_base --set seed=$(SEED) $(ARGS)

bench: $(READY)
	$(BIN)/pytest -q -n $(JOBS) -m "not slow" tests/kernels
	$(BIN)/python -m thinkfirst.launch.bench $(ARGS)

# Writes the table of docs/kernels.md and what tests/launch/benchmarks/cycle_counts_golden_test.py holds the kernels to.
bench-kernels: $(READY)
	$(BIN)/pytest -q -n $(JOBS) -m "not slow" tests/kernels
	$(BIN)/python -m thinkfirst.launch.bench --suite=kernels --tpu_estimate=$(subst $(SPACE),$(COMMA),$(strip $(CHIPS))) \
	  --report=docs/kernels.md --out=tests/golden/kernel_cycles.json $(ARGS)

block-sizes: $(READY)
	$(BIN)/python -m thinkfirst.launch.bench --suite=kernels --tpu_estimate=$(subst $(SPACE),$(COMMA),$(strip $(CHIPS))) \
	  --search $(ARGS)

bench-tunix: $(READY)
	$(BIN)/python -m thinkfirst.launch.bench --suite=$(SUITE) --peer=tunix $(ARGS)

# The environment of both: what the golden files come from is what we are timed against.
tunix-env: .build/oracle_tunix/.ok

test: $(TRITON) lint types wheel-check
	$(BIN)/pytest -n $(JOBS) -m "not long" $(ARGS)

test-long: $(TRITON)
	$(BIN)/pytest -n $(JOBS) -m long $(ARGS)

# Compiled programs are kept: nearly every start of the program takes the same ones.
crash: $(READY)
	JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.build/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 PYTHONPATH=tests \
	  $(BIN)/python -m crash.matrix .build/crash $(ARGS)
	$(BIN)/pytest tests/crash/hosts_long.py

quick: lint
	$(BIN)/pytest -n $(JOBS) -m "not slow and not long" $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .

# mypy cannot follow an editable install; these links are the package as it would be installed.
types: $(READY)
	@rm -rf .build/types && mkdir -p .build/types/thinkfirst
	@for layer in $(LAYERS); do ln -s "../../../$$layer" ".build/types/thinkfirst/$$layer"; done
	MYPYPATH=.build/types $(BIN)/mypy -p thinkfirst

wheel-check: $(READY)
	PYTHONPATH=tests $(BIN)/python -m house.wheel

# What thinkfirst-pod copies to the workers of a slice.
wheel: $(READY)
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

build-file:
	PYTHONPATH=tests $(PYTHON) -m house.write_build

# The oracles: other people's Gemmas, each in an environment of its own.
MAKERS_hf := make_transformers make_checkpoints make_peft
MAKERS_tunix := make_tunix make_tunix_step
COMPARED_hf := tests/models/gemma_transformers_test.py tests/models/lora_peft_test.py
COMPARED_tunix := tests/models/gemma_tunix_test.py tests/rl/trainer_tunix_test.py
GOLDEN ?= tests/golden

golden: golden-hf golden-tunix

golden-%: .build/oracle_%/.ok
	@set -e; for maker in $(MAKERS_$*); do .build/oracle_$*/bin/python tests/golden/$$maker.py --out $(GOLDEN) $(ARGS); done

parity: parity-hf parity-tunix

parity-%: $(READY)
	@if [ ! -e .build/oracle_$*/.ok ]; then \
	  echo "parity: left out what tests/golden/oracle_$*.txt lists; make .build/oracle_$*/.ok installs it"; \
	else \
	  $(MAKE) --no-print-directory golden-$* GOLDEN=.build/parity && \
	  THINKFIRST_GOLDEN=$(CURDIR)/.build/parity $(BIN)/pytest $(COMPARED_$*); \
	fi

.PRECIOUS: .build/oracle_%/.ok
.build/oracle_%/.ok: tests/golden/oracle_%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

clean:
	rm -rf .venv .build thinkfirst.egg-info

$(READY): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "thinkfirst needs Python 3.11 or later, and $(PYTHON) is not: try make PYTHON=python3.12 ..." >&2; exit 2; }
	@set -e; \
	interpreter=$$($(PYTHON) -c 'import sys; print(sys.executable)'); \
	if command -v uv >/dev/null 2>&1; then \
	  echo "setting up .venv with uv and $$interpreter"; \
	  uv venv --quiet --allow-existing --python "$$interpreter" .venv; \
	else \
	  echo "setting up .venv with pip and $$interpreter (about a minute; uv, when installed, takes seconds)"; \
	  "$$interpreter" -m venv .venv || { \
	    echo "no virtual environment could be made; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }; \
	fi
	@$(call installed,$(EXTRAS))
	@touch $@

# The kernels for GPUs are tested without one, interpreted and compiled.  That takes Triton (180 MB), and nothing else does.
$(TRITON): $(READY)
	@$(call installed,triton)
	@touch $@

# Installs the package with the extras named.
define installed
if command -v uv >/dev/null 2>&1; then \
  uv pip install --quiet --python $(BIN)/python -e '.[$(1)]'; \
else \
  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(1)]'; \
fi
endef
