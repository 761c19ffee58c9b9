# make setup | demo | app | test | emulate | ops | bench | report | gpu (gpu-check, gpu-bench, gpu-train) | lint | clean.
# VENV= lets several checkouts share one environment.
VENV   ?= .venv
PYTHON ?= python3
RUN    := $(VENV)/bin/python
DEMO   ?= demo
OUT    ?= benchmarks/results

# Threads that wait without spinning: two cores are often shared, and a spinning thread keeps the one it waits for.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo app test emulate ops bench report gpu gpu-check gpu-bench gpu-train lint clean

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

# A web page to play with the models, at http://127.0.0.1:7860.
app: setup
	$(RUN) app.py

test: setup
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 8 --dist worksteal  # networks too small for threads

# Executes the CUDA kernels on the CPU for as long as it takes: more inputs than the tests have, every planted bug, and
# all of it again with the sanitizers of addresses, undefined behaviour and threads. docs/ops.md says what each finds.
emulate: setup
	OMP_NUM_THREADS=1 $(RUN) -m tests.emulation.sweep

# Compiles the C++ and CUDA kernels ahead, or says why it cannot; tries again where it failed before.
ops: setup
	$(RUN) -m torch_utils.ops --build

# The figures of the README and docs/ that come from one machine in minutes.
bench: setup
	$(RUN) benchmarks/bench_ops.py --json $(OUT)/ops-cpu.json
	$(RUN) benchmarks/bench_generator.py --rounds 5 --json $(OUT)/generator-cpu.json
	$(RUN) benchmarks/bench_stylizer.py --json $(OUT)/stylizer-cpu.json
	$(RUN) benchmarks/bench_data.py --json $(OUT)/data-cpu.json

# The tables of docs/performance.md from the records in benchmarks/results.
report: setup
	$(RUN) benchmarks/report.py

# All that a machine with a GPU can tell, in one file to send back: gpu-results.tar.gz.
gpu: gpu-check gpu-bench gpu-train
	tar -czf gpu-results.tar.gz $(OUT)/*cuda*.json
	@echo "written: gpu-results.tar.gz"

# On a machine with a GPU, in this order; docs/performance.md says what for. RUN=python3 takes an environment that is
# there. First whether the kernels are right: gradients, second ones, all types and layouts, memory, and training.
GPU_SETUP := $(if $(filter $(VENV)/bin/python,$(RUN)),setup)
# The folders of all tests that need a GPU: those of others import extras, which a RUN=python3 may lack.
GPU_TESTS := tests/torch_utils/ops tests/networks tests/training
gpu-check: $(GPU_SETUP)
	$(RUN) -m torch_utils.ops --build --check
	ADACONV_OPS=native $(RUN) -m pytest -m gpu $(GPU_TESTS)
	@if command -v compute-sanitizer > /dev/null; then \
	    ADACONV_OPS=native PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 3 \
	    $(RUN) -m pytest -m gpu tests/torch_utils/ops/test_kernels.py tests/torch_utils/ops/test_memory_order.py \
	    -k "opcheck or channels_last or folded or test_memory_order"; \
	else echo "note: compute-sanitizer is not there; memory accesses were not checked" >&2; fi
	$(RUN) benchmarks/compare_kernels.py --device cuda --json $(OUT)/kernels-cuda-fp32.json
	$(RUN) benchmarks/compare_kernels.py --device cuda --precision bf16 --json $(OUT)/kernels-cuda-bf16.json

# Then how fast they are, the generator, and the stylizer.
gpu-bench: $(GPU_SETUP)
	$(RUN) benchmarks/bench_ops.py --device cuda --precision fp32 --precision bf16 --resolution 256 --resolution 1024 \
	    --json $(OUT)/ops-cuda.json
	$(RUN) benchmarks/bench_generator.py --device cuda --batch 32 --precision bf16 --how eager --how graph --rounds 9 \
	    --json $(OUT)/generator-cuda-256.json
	$(RUN) benchmarks/bench_generator.py --device cuda --batch 32 --precision bf16 --resolution 1024 --cbase 32768 \
	    --how eager --how graph --rounds 5 --json $(OUT)/generator-cuda-1024.json
	for p in tf32 bf16; do $(RUN) benchmarks/bench_stylizer.py --device cuda --precision $$p --graph --size 512x1 \
	    --size 1920x1080x1 --size 1920x1080x4 --json $(OUT)/stylizer-cuda-$$p.json || exit 1; done

# And training.
gpu-train: $(GPU_SETUP)
	$(RUN) benchmarks/bench_training.py --device cuda --batch 32 --aug fixed --precision bf16 --modulation modconv \
	    --modulation adaconv --modulation adain --compile --peer-baseline --rounds 5 --json $(OUT)/training-cuda-256.json
	$(RUN) benchmarks/bench_training.py --device cuda --batch 32 --aug fixed --precision bf16 --resolution 64 \
	    --json $(OUT)/training-cuda-64.json
	$(RUN) benchmarks/bench_training.py --device cuda --batch 16 --aug fixed --precision bf16 --resolution 1024 \
	    --cbase 32768 --rounds 2 --json $(OUT)/training-cuda-1024.json

# Style, format and types of the Python code, the layers of its imports, and the format of the C++ and CUDA code.
lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-cache --no-logo
	$(VENV)/bin/clang-format --dry-run --Werror torch_utils/ops/csrc/* tests/emulation/*.h

clean:
	rm -rf $(DEMO) .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
