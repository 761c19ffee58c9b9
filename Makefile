# make setup | demo | test | ops | bench | gpu-check | lint | clean.  VENV= lets several checkouts share one environment.
VENV   ?= .venv
PYTHON ?= python3
RUN    := $(VENV)/bin/python
DEMO   ?= demo
OUT    ?= benchmarks/results

# Threads that wait without spinning: two cores are often shared, and a spinning thread keeps the one it waits for.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test ops bench gpu-check lint clean

# Installs again only when requirements.txt differs from what the environment was made from.
setup:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "error: Python 3.10 or newer is needed; name one with make PYTHON=python3.11" >&2; exit 2; }
	@cmp -s requirements.txt $(VENV)/requirements.txt || { \
	    echo "setting up $(VENV) (PyTorch is large; a few minutes) ..." >&2; \
	    $(PYTHON) -m venv $(VENV) && \
	    $(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt && \
	    cp requirements.txt $(VENV)/requirements.txt; }

# Draws the data set, trains, and generates: about eight minutes on two CPU cores.
demo: setup
	$(RUN) dataset_tool.py faces --out $(DEMO)/faces32.zip --count 4000 --resolution 32 --seed 0 --overwrite
	$(RUN) train.py --cfg demo --data $(DEMO)/faces32.zip --outdir $(DEMO)/runs
	$(RUN) generate.py --network $(DEMO)/runs --seeds 0-63 --grid 8x8 --outdir $(DEMO)/out

test: setup
	$(RUN) -m ruff check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal  # networks too small for threads

# Compiles the C++ and CUDA kernels ahead, or says why it cannot; tries again where it failed before.
ops: setup
	$(RUN) -m torch_utils.ops --build

# The figures of the README and docs/ that come from one machine in minutes.
bench: setup
	$(RUN) benchmarks/bench_ops.py --json $(OUT)/ops-cpu.json
	$(RUN) benchmarks/bench_generator.py --rounds 5 --json $(OUT)/generator-cpu.json
	$(RUN) benchmarks/bench_stylizer.py --json $(OUT)/stylizer-cpu.json
	$(RUN) benchmarks/bench_data.py --json $(OUT)/data-cpu.json

# On a machine with a GPU: builds, tests and times the kernels. RUN=python3 takes an environment that is there.
gpu-check: $(if $(filter $(VENV)/bin/python,$(RUN)),setup)
	$(RUN) -m torch_utils.ops --build
	ADACONV_OPS=native $(RUN) -m pytest -m gpu
	mkdir -p $(OUT)
	$(RUN) benchmarks/bench_generator.py --device cuda --rounds 9 --json $(OUT)/generator-cuda.json
	$(RUN) benchmarks/bench_ops.py --device cuda --rounds 30 --json $(OUT)/ops-cuda.json

lint: setup
	$(RUN) -m ruff check .

clean:
	rm -rf $(DEMO) .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
