# Everything a developer types. `make help` lists it.
#
#   PYTHON=python3.12       the interpreter .venv is made with (3.11 or later)
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                           a further package index, for torch without CUDA
#   PYTEST_ARGS="-k cli"    further arguments of pytest
#   ARGS="--port 6000"      the arguments of `rerank-grpc serve`
#   IMAGE=rerank-grpc:cuda  the image's name
#   ENGINE=podman           what builds it, instead of the first that works here
#   IMAGE_ARGS="--no-cache" further arguments of the engine's build

PYTHON ?= python3
TORCH_INDEX ?=
PYTEST_ARGS ?=
ARGS ?=
IMAGE ?= rerank-grpc
IMAGE_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
BUF := tools/buf/node_modules/.bin/buf
BASELINE := tools/buf/rerank.v1.binpb
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve bench bench-quick bench-attacks test coverage test-clients test-clients-quick test-openapi lint format proto baseline image clean

help:  ## Lists these targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## Installs, starts a server, reranks an example, stops it.
	@$(BIN)/python scripts/demo.py

serve: $(VENV)/.demo  ## Serves the embedded model, or what ARGS says.
	@exec $(BIN)/rerank-grpc serve $(ARGS)

test: $(VENV)/.dev  ## Runs every test, a process on each core.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

coverage: $(VENV)/.dev  ## Runs every test, and checks each package's coverage against its floor.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report= $(PYTEST_ARGS)
	@$(BIN)/python scripts/coverage_floors.py $(if $(CI),--quiet)

lint: $(VENV)/.dev $(BUF)  ## Checks format, types, imports, dead code, contract and stubs.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BUF) lint
	$(BUF) breaking --against $(BASELINE)
	$(BIN)/python scripts/generate_stubs.py --check

format: $(VENV)/.dev  ## Formats the code and sorts its imports.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-clients: $(VENV)/.demo  ## Runs the real clients of other rerank APIs against the server.
	@$(BIN)/python clients/conformance/run.py all

test-clients-quick: $(VENV)/.demo  ## The same with those that install fastest, in a minute.
	@$(BIN)/python clients/conformance/run.py quick

test-openapi: $(VENV)/.dev  ## Runs schemathesis against the REST server's OpenAPI document.
	@$(BIN)/python clients/conformance/openapi.py

bench: $(VENV)/.bench  ## Measures the CPU's share against peers, over an hour; ARGS="--cases base/W2" for less.
	@TORCH_INDEX='$(TORCH_INDEX)' $(BIN)/python -m benchmarks.cpu $(ARGS)

bench-quick: $(VENV)/.bench  ## Measures what the service adds to its model, in three minutes.
	@$(BIN)/python -m benchmarks.quick

bench-attacks: $(VENV)/.demo  ## Attacks a server in 25 ways, over six minutes; ARGS="--only bodies,hang" for some.
	@$(BIN)/python -m benchmarks.attacks $(ARGS)

proto: $(VENV)/.dev $(BUF)  ## Checks the contract and generates its stubs.
	$(BUF) lint
	$(BUF) breaking --against $(BASELINE)
	$(BIN)/python scripts/generate_stubs.py

baseline: $(BUF)  ## Makes today's contract the one that may not break; at a release.
	$(BUF) build --exclude-source-info -o $(BASELINE)

image:  ## Builds the container image: for CPUs, or with the torch of TORCH_INDEX.
	@ENGINE='$(ENGINE)' scripts/image.sh -t $(IMAGE) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) $(IMAGE_ARGS)

clean:  ## Removes what the targets above have installed and cached.
	rm -rf $(VENV) .tools/conformance tools/buf/node_modules build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is not Python 3.11 or later; name one with PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp says that an install has succeeded with these very versions.
$(VENV)/.demo: constraints.txt pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): about a minute with torch's CPU wheel, longer with CUDA's."
	$(INSTALL) -e '.[server,embedded,rest]'
	@touch $@

$(VENV)/.dev: constraints.txt pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): about a minute with torch's CPU wheel, longer with CUDA's."
	$(INSTALL) -e '.[server,embedded,rest,dev]'
	@touch $(VENV)/.demo $@

$(VENV)/.bench: constraints.txt pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[server,embedded,rest,bench]'
	@touch $(VENV)/.demo $@

# Not `npm ci`: it insists on a lock entry for every platform that buf has a package for.
$(BUF): tools/buf/package.json tools/buf/package-lock.json
	@command -v npm >/dev/null || { echo "make: buf is installed by npm, and npm is missing" >&2; exit 1; }
	npm --prefix tools/buf install --no-save --ignore-scripts --no-audit --no-fund
	@touch $@
