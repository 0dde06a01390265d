# Every target makes its own environment in .venv when there is none. Needs Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS_READY := $(VENV)/.peers
DOCS_READY := $(VENV)/.docs
BETTY_READY := $(VENV)/.betty
DEMO := runs/demo

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' $(MAKEFILE_LIST))

help:  ## show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 22

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "metaprox needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,dev]'
	touch $@

$(PEERS_READY): $(READY)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,dev,peers]'
	touch $@

$(DOCS_READY): $(READY)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,dev,docs]'
	touch $@

# Betty's metadata is such that pip 24.1 and newer refuse it, and so would every extra with it in. It needs torch alone.
$(BETTY_READY): $(PEERS_READY)
	$(PYTHON) -m venv $(VENV)/pip-23
	$(VENV)/pip-23/bin/python -m pip install --quiet --disable-pip-version-check 'pip<24.1'
	$(VENV)/pip-23/bin/python -m pip --python $(BIN)/python install --quiet --disable-pip-version-check --no-deps betty-ml==0.1.1
	touch $@

docs: $(DOCS_READY)  ## build the documentation, in which every warning is an error, two minutes: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(DOCS_READY)  ## the documentation in a browser, at http://127.0.0.1:8000, anew as its files change
	$(BIN)/mkdocs serve

demo: $(READY)  ## meta-train on MNIST-1D and evaluate on unseen digits: figures and a report in runs/demo
	rm -rf $(DEMO)
	$(BIN)/metaprox train mnist1d --out $(DEMO)

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -n 2

wheel-test: $(READY)  ## build sdist and wheel, try both outside the checkout on each Python there is; FULL=1 runs all tests: ten minutes
	$(BIN)/python tests/wheel $(if $(FULL),--full) $(if $(PYTHONS),--pythons $(PYTHONS))

distributed: $(READY)  ## what several processes promise: equal results, compiled too, deaths, stops, restarts; some minutes
	$(BIN)/python -m pytest -m "distributed or not distributed" tests/test_distributed.py tests/test_sharded.py tests/test_reduce.py \
	  tests/test_recipes.py

bad-inputs: $(READY)  ## count what becomes of thousands of bad, odd and unusual inputs
	$(BIN)/python tests/bad_inputs

faults: $(READY)  ## kill, stop, damage and obstruct small runs, ten minutes on a free machine: results/faults
	$(BIN)/python tests/faults --out results/faults

mutants: $(READY)  ## small changes of the core, one at a time: which does no test notice? an hour: results/mutants
	$(BIN)/python tests/mutants

lint: $(READY)  ## ruff, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

experiments: $(READY)  ## every experiment at full size, some hours: results/report.html
	$(BIN)/metaprox reproduce all --out results

experiments-quick: $(READY)  ## every experiment at small size, ten minutes: runs/quick/report.html
	rm -rf runs/quick
	$(BIN)/metaprox reproduce all --quick --out runs/quick

quick-everywhere: $(READY)  ## the same under two numbers of threads, two precisions and three seeds, three hours of one core: results/quick-everywhere
	$(BIN)/python tests/quick --jobs $(or $(JOBS),2) --out results/quick-everywhere

mnist1d: $(READY)  ## the run behind docs/evidence/few-shot.md, as demo but kept: results/mnist1d
	rm -rf results/mnist1d
	$(BIN)/metaprox train mnist1d --out results/mnist1d

banking77: $(READY)  ## the run on BANKING77 behind the figures of docs/text.md; METAPROX_DATA holds the data: results/banking77
	rm -rf results/banking77
	$(BIN)/metaprox train banking77 --solver gd --perturb center --eps 0.1 --scheme forward --residual-correction \
	  --eval-every 25 --eval-tasks 40 --test-tasks 150 --checkpoint-every 5 --out results/banking77

omniglot: $(READY)  ## the run on Omniglot behind the figures of docs/data.md, minutes; METAPROX_DATA holds the data: results/omniglot
	rm -rf results/omniglot
	$(BIN)/metaprox train omniglot --width 32 --queries 5 --inner-lr 0.1 --meta-steps 200 \
	  --eval-every 50 --eval-tasks 50 --test-tasks 300 --out results/omniglot

banking77-tuning: $(READY)  ## the outer step of each method on BANKING77, half an hour: results/banking77-tuning
	rm -rf results/banking77-tuning
	$(BIN)/python benchmarks/banking77_tuning.py --out results/banking77-tuning

BANKING77 := --solver gd --budget gradients --seeds 0 1 2 --eval-every 60 --eval-split validation \
  --checkpoint-every 5
CHOSEN := results/banking77-tuning

banking77-methods: $(READY)  ## methods on BANKING77 with those, at equal gradients, an hour: results/banking77-*
	rm -rf results/banking77-head results/banking77-lora-head results/banking77-lora
	$(BIN)/metaprox compare banking77 $(BANKING77) --methods fobmaml fomaml reptile --variants $(CHOSEN)/head.json \
	  --meta-steps 60 --eval-tasks 40 --test-tasks 200 --out results/banking77-head
	$(BIN)/metaprox compare banking77 $(BANKING77) --methods fobmaml fomaml --variants $(CHOSEN)/lora-head.json \
	  --meta-steps 60 --eval-tasks 40 --test-tasks 100 --out results/banking77-lora-head
	$(BIN)/metaprox compare banking77 $(BANKING77) --methods fobmaml fomaml reptile --variants $(CHOSEN)/lora.json \
	  --meta-steps 20 --eval-tasks 5 --test-tasks 50 --out results/banking77-lora

mnist1d-methods: $(READY)  ## tune every method on MNIST-1D with equal budgets, then compare them over five seeds, an hour and a half: results/accuracy
	$(BIN)/metaprox reproduce mnist1d-tuning --out results
	$(BIN)/metaprox reproduce accuracy --out results

peers: $(PEERS_READY)  ## our meta-gradients against those of higher and TorchOpt: results/peers
	$(BIN)/python benchmarks/peers.py --out results/peers

default-variants: $(READY)  ## variants of FO-B-MAML in long training, half an hour: results/default-variants
	$(BIN)/metaprox compare mnist1d --methods "symmetric, center" "symmetric, loss" corrected "corrected, step 0.2" \
	  --variants benchmarks/default_variants.json --eval-every 250 --out results/default-variants

bench: $(BETTY_READY)  ## time and memory of a meta-gradient against plain gradients and other libraries, three quarters of an hour: results/speed
	$(BIN)/python benchmarks/speed.py --out results/speed

bench-two-threads: $(BETTY_READY)  ## the times of bench with two threads of torch, twenty minutes: results/speed-two-threads
	$(BIN)/python benchmarks/speed.py --threads 2 --no-memory --rounds 5 --seconds 2.5 --out results/speed-two-threads

bench-error: $(PEERS_READY)  ## error of a meta-gradient against its time, beside TorchOpt's iMAML, a quarter of an hour: results/error-cost
	$(BIN)/python benchmarks/error_cost.py --out results/error-cost

bench-estimate: $(READY)  ## time of the estimate of the error, with and without it in turn, half an hour: results/estimate
	$(BIN)/python benchmarks/estimate.py --out results/estimate

bench-affordable: $(READY)  ## the estimated error at more and more steps, and what rtol takes, five minutes: results/affordable
	$(BIN)/python benchmarks/affordable.py --out results/affordable

bench-backends: $(READY)  ## vmap, eager and compiled, against the loop on networks of growing size, 20 minutes: results/backends
	$(BIN)/python benchmarks/backends.py --out results/backends

bench-fixed: $(READY)  ## where the time of a small compiled meta-gradient goes, beside its graph, a minute: results/fixed
	$(BIN)/python benchmarks/fixed.py --out results/fixed

bench-first-call: $(READY)  ## the first compiled call, with torch's cache empty and in the next process, three minutes: results/first-call
	$(BIN)/python benchmarks/first_call.py --out results/first-call

bench-backends-by-loss: $(READY)  ## the same about the limit, of many queries, and with a backend for each loss, ten minutes: results/backends-by-loss
	$(BIN)/python benchmarks/backends.py --eager --by-loss --rounds 3 --queries 25 75 --out results/backends-by-loss --networks \
	  "MLP 40-160-160-5" "MLP 40-320-320-5" "MLP 40-480-480-5" "conv, 16 channels" "conv, 64 channels" \
	  "conv, 64 channels, batch norm"

bench-processes: $(READY)  ## throughput of two processes against one, on two idle cores, four minutes: results/processes
	$(BIN)/python benchmarks/processes.py --out results/processes

bench-cost-model: $(READY)  ## bytes moved and numbers held on several processes, times of 1, 2 and 4, on idle cores, two minutes: results/cost-model
	$(BIN)/python benchmarks/cost_model.py --out results/cost-model

gpu: $(READY)  ## on a CUDA device: the tests marked for it, speed and memory at sizes that fill it, fifteen minutes: results/gpu
	$(BIN)/python benchmarks/gpu.py --out results/gpu

bench-large: $(READY)  ## time and memory of a meta-gradient of 10^8 parameters by its own plain gradients, five minutes: results/large
	$(BIN)/python benchmarks/large.py --out results/large

bench-tf32: $(READY)  ## what convolutions in TF32 do to meta-gradients, by rounding on the CPU, a minute: results/tf32
	$(BIN)/python benchmarks/tf32.py --out results/tf32

bench-scaling: $(READY)  ## time of a meta-gradient against inner steps and tasks, five minutes: results/scaling
	$(BIN)/python benchmarks/scaling.py --out results/scaling

bench-sampling: $(READY)  ## time of drawing tasks against that of a meta-step, and memory of reading 100,000 pictures: results/sampling
	$(BIN)/python benchmarks/sampling.py --out results/sampling

bench-norms: $(READY)  ## the conv net's norms for pictures, asked for together and alone, ten minutes; METAPROX_DATA holds Omniglot: results/norms
	$(BIN)/python benchmarks/norms.py --out results/norms

bench-suggest: $(READY)  ## short training with what mp.suggest says, beside the defaults, two minutes: results/suggest
	$(BIN)/python benchmarks/suggest.py --out results/suggest

examples: $(READY)  ## every page of examples at full size, five minutes: results/examples
	mkdir -p results/examples
	for page in examples/*.py; do $(BIN)/python $$page > results/examples/$$(basename $$page .py).txt || exit 1; done

bench-fixed-steps: $(READY)  ## training on fixed inner steps and on steps that are found, centre and loss, ten minutes: results/fixed-steps
	$(BIN)/python benchmarks/fixed_steps.py --out results/fixed-steps

five-cases: $(READY)  ## the blocks of docs/five_cases.md, with accuracies and seconds, a minute: results/five-cases
	$(BIN)/python benchmarks/five_cases.py --out results/five-cases

clean:  ## remove the environment and caches, not runs or results
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .mutants
