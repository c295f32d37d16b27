# Everything a developer types. `make help` lists it.
#
#   PYTHON=python3.12       the interpreter .venv is made with (3.11 or later)
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                           a further package index, for torch without CUDA
#   PYTEST_ARGS="-k cli"    further arguments of pytest
#   ARGS="--port 6000"      the arguments of `rerank-grpc serve`
#   IMAGE=rerank-grpc:cuda  the image's name
#   ENGINE=podman           what builds it, instead of the first that works here
#   REPOSITORY=ghcr.io/you/rerank-grpc
#                           where the image is published, for each of PROCESSORS
#   TAG=v1.2.3              the release that `make release-check` is for
#   SOURCE=https://...      where others find the source, for the image's label
#   IMAGE_ARGS="--no-cache" further arguments of the engine's build

PYTHON ?= python3
TORCH_INDEX ?=
PYTEST_ARGS ?=
ARGS ?=
REPOSITORY ?=
PROCESSORS ?= amd64 arm64
IMAGE ?= rerank-grpc
IMAGE_ARGS ?=
TAG ?=

VENV := .venv
BIN := $(VENV)/bin
BUF := tools/buf/node_modules/.bin/buf
BASELINE := tools/buf/rerank.v1.binpb
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# One chance failure among ten thousand tests does not end a run of an hour; it is shown, and six of them end it.
AGAIN := $(if $(CI),--reruns 1 --max-suite-reruns 5 --rerun-show-tracebacks)
# A process beside a test that compares with the clock makes it fail by chance.
TIMED := $(PYTEST) $(AGAIN) -m 'clock and not ray and not image'
UNTIMED := $(PYTEST) $(AGAIN) -m 'not clock and not ray and not image' -n auto --dist loadfile

APT := apt-get -qq -y --no-install-recommends
NATIVE := golang-go golang-google-grpc-dev golang-google-protobuf-dev golang-google-genproto-dev \
  golang-github-golang-protobuf-1-5-dev protobuf-compiler protoc-gen-go protoc-gen-go-grpc \
  default-jdk-headless protobuf-compiler-grpc-java-plugin libgrpc-java libprotobuf-java libnetty-java \
  libnetty-tcnative-java libperfmark-java libguava-java libgoogle-gson-java \
  libgeronimo-annotation-1.3-spec-java junit4
BROWSER := chromium fonts-wqy-zenhei

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve bench bench-quick bench-attacks test coverage test-ray test-clients test-clients-quick test-clients-native native-tools browser-tools test-node test-go test-java test-openapi lint format proto baseline wheels image test-image lock \
  publish-image publish-index publish-release sbom audit release-check clean

help:  ## Lists these targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## Installs, starts a server, reranks an example, stops it.
	@$(BIN)/python scripts/demo.py

serve: $(VENV)/.demo  ## Serves the embedded model, or what ARGS says.
	@exec $(BIN)/rerank-grpc serve $(ARGS)

test: $(VENV)/.dev  ## Runs every test: what compares with the clock alone, the rest in a process on each core.
	@$(TIMED) $(PYTEST_ARGS) || [ $$? = 5 ] # of PYTEST_ARGS' choice, none may be timed
	@$(UNTIMED) $(PYTEST_ARGS)

coverage: $(VENV)/.dev  ## Runs every test, and checks each package's coverage against its floor.
	@$(TIMED) --cov --cov-report= $(PYTEST_ARGS)
	@$(UNTIMED) --cov --cov-append --cov-report= $(PYTEST_ARGS)
	@$(BIN)/python scripts/coverage_floors.py $(if $(CI),--quiet)

lint: $(VENV)/.dev $(BUF)  ## Checks format, types, imports, dead code, workflows, contract and stubs.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/jactionlint --no-hints
	[ ! -x $(BIN)/zizmor ] || $(BIN)/zizmor --quiet --offline .github
	$(BUF) lint
	$(BUF) breaking --against $(BASELINE)
	$(BIN)/python scripts/generate_stubs.py --check

format: $(VENV)/.dev  ## Formats the code and sorts its imports.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-ray: $(VENV)/.dev  ## Runs the tests on a local cluster of Ray, one after the other.
	@$(PYTEST) $(AGAIN) -m ray tests/ray tests/batch $(PYTEST_ARGS)

test-clients: $(VENV)/.demo  ## Runs the real clients of other rerank APIs against the server.
	@$(BIN)/python clients/conformance/run.py all

test-clients-quick: $(VENV)/.demo  ## The same with those that install fastest, in a minute.
	@$(BIN)/python clients/conformance/run.py quick

test-clients-native: $(VENV)/.demo $(BUF)  ## Sends one list of requests through every client, and compares; Go and Java after native-tools.
	@$(BIN)/python -m clients.conformance.contract.run $(ARGS)

native-tools:  ## Installs Debian's packages that the clients for Go and Java are built with.
	@$(APT) install $(NATIVE) || { $(APT) update && $(APT) install $(NATIVE); }

browser-tools:  ## Installs what the tests of the pages drive: Debian's Chromium, a font with Chinese, and axe-core.
	@$(APT) install $(BROWSER) || { $(APT) update && $(APT) install $(BROWSER); }
	@npm --prefix tools/browser install --no-save --ignore-scripts --no-audit --no-fund

test-node: $(VENV)/.demo  ## Builds the client for Node, and tests it against real servers.
	@$(BIN)/python -m clients.conformance.contract.node
	@npm --prefix clients/node test --silent

test-go: $(VENV)/.demo  ## Builds the client for Go with Debian's packages, and tests it against real servers.
	@$(BIN)/python -m clients.go.tasks test

test-java: $(VENV)/.demo  ## Builds the client for Java with Debian's packages, and tests it against real servers.
	@$(BIN)/python -m clients.java.check

test-openapi: $(VENV)/.dev  ## Runs schemathesis against the REST server's OpenAPI document.
	@$(BIN)/python clients/conformance/openapi.py

bench: $(VENV)/.bench  ## Measures the CPU's share against peers, over an hour; ARGS="--cases base/W2" for less.
	@TORCH_INDEX='$(TORCH_INDEX)' $(BIN)/python -m benchmarks.cpu $(ARGS)

bench-quick: $(VENV)/.bench  ## Measures what the service adds to its model, in six minutes.
	@$(BIN)/python -m benchmarks.quick

bench-attacks: $(VENV)/.demo  ## Attacks a server in 25 ways, over six minutes; ARGS="--only bodies,hang" for some.
	@$(BIN)/python -m benchmarks.attacks $(ARGS)

proto: $(VENV)/.dev $(BUF)  ## Checks the contract and generates its stubs.
	$(BUF) lint
	$(BUF) breaking --against $(BASELINE)
	$(BIN)/python scripts/generate_stubs.py

baseline: $(BUF)  ## Makes today's contract the one that may not break; at a release.
	$(BUF) build --exclude-source-info -o $(BASELINE)

wheels: $(VENV)/.dev  ## Builds the wheels into dist/: a pure one, and one with the kernels for gcc's machine.
	@$(BIN)/python scripts/build_wheels.py dist $(ARGS)

image:  ## Builds the container image: for CPUs, or with the torch of TORCH_INDEX.
	@ENGINE='$(ENGINE)' SOURCE='$(SOURCE)' scripts/image.sh -t $(IMAGE) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) $(IMAGE_ARGS)

test-image: $(VENV)/.dev  ## Builds the image by buildah, and tests containers of it by podman.
	@IMAGE_ARGS='$(IMAGE_ARGS)' TORCH_INDEX='$(TORCH_INDEX)' OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -m image -rs tests/image $(PYTEST_ARGS)

lock: $(VENV)/.dev  ## Writes the versions and hashes that the image installs, to requirements/.
	@UV=$(BIN)/uv scripts/lock_image.sh

publish-image:  ## Pushes IMAGE as REPOSITORY:VERSION-PROCESSOR; log in to the registry first.
	@scripts/publish_image.sh image '$(IMAGE)' '$(REPOSITORY)'

publish-index:  ## Pushes REPOSITORY:VERSION, which leads to what publish-image has pushed for each processor.
	@scripts/publish_image.sh index '$(REPOSITORY)' $(PROCESSORS)

publish-release:  ## Makes the page of TAG on GitHub, with what is in dist/.
	gh release create '$(TAG)' --verify-tag --title '$(TAG)' --notes 'CHANGELOG.md tells what is new.' dist/*

sbom: $(VENV)/.dev wheels  ## Writes what the image installs as a bill of materials (CycloneDX), into dist/.
	@$(if $(TORCH_INDEX),TORCH_INDEX='$(TORCH_INDEX)') $(BIN)/python scripts/sbom.py

audit: $(VENV)/.dev  ## Asks PyPI and npm for known vulnerabilities of what is pinned.
	@$(BIN)/python scripts/audit.py

release-check: $(VENV)/.dev $(BUF)  ## Checks that this tree can be released as TAG, over ten minutes.
	@$(if $(TORCH_INDEX),TORCH_INDEX='$(TORCH_INDEX)') $(BIN)/python scripts/release_check.py $(TAG) $(ARGS)

clean:  ## Removes what the targets above have installed and cached.
	rm -rf $(VENV) .tools/conformance tools/buf/node_modules tools/browser/node_modules clients/node/node_modules clients/node/dist clients/node/src/gen build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is not Python 3.11 or later; name one with PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp says that an install has succeeded with these very versions.
$(VENV)/.demo: constraints.txt pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): about a minute with torch's CPU wheel, longer with CUDA's."
	$(INSTALL) -e '.[server,embedded,rest,top]'
	@touch $@

$(VENV)/.dev: constraints.txt pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): about a minute with torch's CPU wheel, longer with CUDA's."
	$(INSTALL) -e '.[server,embedded,rest,otel,top,ray,batch,bench,eval,dev]'
	@touch $(VENV)/.demo $@

$(VENV)/.bench: constraints.txt pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[server,embedded,rest,top,bench]'
	@touch $(VENV)/.demo $@

# Not `npm ci`: it insists on a lock entry for every platform that buf has a package for.
$(BUF): tools/buf/package.json tools/buf/package-lock.json
	@command -v npm >/dev/null || { echo "make: buf is installed by npm, and npm is missing" >&2; exit 1; }
	npm --prefix tools/buf install --no-save --ignore-scripts --no-audit --no-fund
	@touch $@
