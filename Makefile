# make demo | test | soak | bench | compiled | image | jaeger | lint | proto | format | lock | clean
#   make demo KEEP=1           leaves the demo running and prints commands to try
#   make demo ACTS=1,2         plays only these acts (3 to 7 expect act 2)
#   make demo JAEGER=HOST:PORT passes all spans on to this OTLP/gRPC address, such as `make jaeger`'s
#   make test ARGS="-k split"  passes arguments on to pytest
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODEGEN := .venv-codegen
LOCK := .venv-lock
SOURCES := sidecar control proto envoy tests
ARGS ?=
KEEP ?=
ACTS ?=
JAEGER ?=
BASE ?=

.PHONY: all venv codegen compiled tools image jaeger demo test soak bench lint proto format lock clean
all: venv
venv: $(STAMP)
codegen: $(CODEGEN)/.installed

$(STAMP): requirements-dev.txt pyproject.toml
	@echo "installing into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-dev.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The code generator has a venv of its own: it pins an older protobuf than the runtime's.
$(CODEGEN)/.installed: requirements-codegen.txt
	@echo "installing into $(CODEGEN)"
	$(PYTHON) -m venv $(CODEGEN)
	$(CODEGEN)/bin/pip install -q --disable-pip-version-check --require-hashes --only-binary :all: -r requirements-codegen.txt
	@touch $@

# grpcurl, for the tests that run the README's lines; Prometheus, for those of the alert rules; Jaeger,
# for those that look at traces; h2spec, ghz and h2load, for those of the wire; Chromium, for those of
# the report.
tools:
	@PYTHON=$(PYTHON) .ci/tools grpcurl prometheus jaeger h2spec ghz h2load netns chromium

# A Jaeger on the loopback until Ctrl-C, with its traces in memory.
jaeger:
	@PYTHON=$(PYTHON) .ci/tools jaeger
	@echo "Jaeger takes spans at 127.0.0.1:4317 (make demo JAEGER=127.0.0.1:4317) and shows them at"
	@echo "http://127.0.0.1:16686 (/api/traces?service=turnout; this build has no web page)"
	@exec .tools/bin/jaeger --config file:.ci/jaeger/config.yaml

# The container images, localhost/turnout and localhost/turnout-sidecar in .tools/image; BASE=name builds
# on an image of a registry.
image:
	@BASE=$(BASE) .ci/image

demo: venv
	@$(BIN)/python -m envoy.demo $(if $(KEEP),--keep) $(if $(ACTS),--acts $(ACTS)) $(if $(JAEGER),--jaeger $(JAEGER))

test: venv codegen tools compiled
	$(BIN)/pytest -m "not soak" $(ARGS)

soak: venv codegen tools compiled image
	$(BIN)/pytest -m soak $(ARGS)

# The sidecar with its request path compiled, as the image has it, in .compiled.
compiled: venv
	@PYTHON=$(PYTHON) .ci/tools compiler
	$(BIN)/python -m tests.compiling

bench: venv compiled
	@PYTHON=$(PYTHON) .ci/tools wrk peers h2load
	$(BIN)/python -m tests.benchmarks $(ARGS)

lint: venv
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto

format: venv
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The generated modules are checked in; tests/tidy regenerates them and compares.
proto: codegen
	cd proto && PATH=$(CURDIR)/$(CODEGEN)/bin:$$PATH ../$(CODEGEN)/bin/python -m grpc_tools.protoc -I. \
	  --python_out=. --mypy_out=. turnout/envoy/*.proto turnout/v1alpha1/*.proto
	cd proto && PATH=$(CURDIR)/$(CODEGEN)/bin:$$PATH ../$(CODEGEN)/bin/python -m grpc_tools.protoc -I. \
	  --grpc_python_out=. --mypy_grpc_out=. turnout/v1alpha1/*_service.proto

# Hash-locked requirements without any index address in them.
lock: $(LOCK)/.installed
	$(LOCK)/bin/uv pip compile -q --python-version 3.11 --generate-hashes --no-header --no-annotate --only-binary :all: \
	  --no-emit-index-url --no-emit-find-links -o requirements.txt pyproject.toml
	$(LOCK)/bin/uv pip compile -q --python-version 3.11 --generate-hashes --no-header --no-annotate --only-binary :all: \
	  --no-emit-index-url --no-emit-find-links --extra demo --extra test \
	  -o requirements-dev.txt pyproject.toml
	$(LOCK)/bin/uv pip compile -q --python-version 3.11 --generate-hashes --no-header --no-annotate --only-binary :all: \
	  --no-emit-index-url --no-emit-find-links -o requirements-image.txt requirements-image.in
	$(LOCK)/bin/uv pip compile -q --python-version 3.11 --generate-hashes --no-header --no-annotate --only-binary :all: \
	  --no-emit-index-url --no-emit-find-links -o requirements-codegen.txt requirements-codegen.in

$(LOCK)/.installed:
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/pip install -q --disable-pip-version-check --only-binary :all: uv==0.13.9
	@touch $@

clean:
	rm -rf $(VENV) $(CODEGEN) $(LOCK) .compiled* .shipped* .tools .turnout .mypy_cache .ruff_cache .pytest_cache .hypothesis
