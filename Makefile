# make demo | test | soak | bench | lint | proto | format | lock
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODEGEN := .venv-codegen

.PHONY: all venv demo test soak bench lint proto format lock clean
all: venv
venv: $(STAMP)

$(STAMP): requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --require-hashes --only-binary :all: -r requirements-dev.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@

$(CODEGEN)/.installed: requirements-codegen.txt
	$(PYTHON) -m venv $(CODEGEN)
	$(CODEGEN)/bin/pip install -q --require-hashes -r requirements-codegen.txt
	touch $@

proto: $(CODEGEN)/.installed
	cd proto && PATH=$(CURDIR)/$(CODEGEN)/bin:$$PATH ../$(CODEGEN)/bin/python -m grpc_tools.protoc -I. \
	  --python_out=. --mypy_out=. turnout/envoy/*.proto turnout/v1alpha1/*.proto
	cd proto && PATH=$(CURDIR)/$(CODEGEN)/bin:$$PATH ../$(CODEGEN)/bin/python -m grpc_tools.protoc -I. \
	  --grpc_python_out=. --mypy_grpc_out=. turnout/v1alpha1/*_service.proto
