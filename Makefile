# Two commands for a newcomer: `make demo` and `make test`.  They need Python 3.11 or later and a C compiler.
#
# Everything is installed into .venv, pinned by constraints.txt and editable, so that `python deploy.py` and the tests
# run this checkout.  Nothing is done twice: the stamps in .venv are newer than what they were made from, or made again.

PYTHON ?= python3
# Tests at once: each computes on one thread.
JOBS ?= 2

VENV := .venv
IN := $(VENV)/bin/python
INSTALL := $(IN) -m pip install --disable-pip-version-check -c constraints.txt
# What an editable installation is made from: its lists of packages, and the C core that it compiles.
INSTALLED := pyproject.toml constraints.txt $(wildcard engines/tiling/*.[ch])
ROOMS := engines calib pipeline tests benchmarks
# What a bundle of the demo is made from.
SOURCES := deploy.py $(shell find engines calib pipeline -name '*.py' -o -path 'pipeline/demo/model/*')
PHOTOGRAPHS := pipeline/demo/images
MASKS := $(foreach name,street-1 street-2,$(addprefix masks/$(name),.png .overlay.jpg .confidence.png))

# Of `make fuzz`, in all.
FUZZ_SECONDS ?= 600

.PHONY: help demo test lint bench fuzz picture image clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help: ## list the targets (this is what `make` alone does)
	@echo "usage: make TARGET [PYTHON=python3.12] [JOBS=2] [ARGS='-k tiling']"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: masks/demo.jpg ## install, build the demo engine, segment its two photographs
	@echo "overlays: masks/street-1.overlay.jpg masks/street-2.overlay.jpg; beside its photograph: masks/demo.jpg"

test: $(VENV)/test.stamp ## install what the tests need and run them; ARGS goes to pytest
	$(IN) -m pytest -n $(JOBS) $(ARGS)

lint: $(VENV)/test.stamp ## ruff check, ruff format --check, mypy
	$(IN) -m ruff check .
	$(IN) -m ruff format --check .
	$(IN) -m mypy

bench: $(VENV)/test.stamp ## stitching beside PyTorch's; a whole frame beside PyTorch and ONNX Runtime (two minutes, no network)
	$(IN) benchmarks/stitch.py --rounds 5
	$(IN) benchmarks/end_to_end.py --rounds 2

fuzz: $(VENV)/test.stamp ## mutated files into everything that reads one, for FUZZ_SECONDS; failing inputs stay in fuzz-results
	$(INSTALL) -e '.[cpu,export,dev,fuzz]'
	$(IN) -m tests.fuzz --seconds $(FUZZ_SECONDS)

picture: masks/demo.jpg ## renew docs/demo.jpg, the picture of the README
	cp masks/demo.jpg docs/demo.jpg

image: ## a container image of edgeseg for CPUs, edgeseg:latest (docker)
	docker build -f docker/cpu.Dockerfile -t edgeseg .

clean: ## remove what the other targets made, and nothing else
	rm -rf $(VENV) demo-bundle fuzz-results build edgeseg.egg-info engines/tiling/_tile*.so .pytest_cache .mypy_cache .ruff_cache
	rm -f $(MASKS) masks/demo.jpg
	[ ! -d masks ] || rmdir --ignore-fail-on-non-empty masks
	find __pycache__ $(ROOMS) -path benchmarks/peers/.venv -prune -o -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

masks/demo.jpg: demo-bundle/manifest.json $(wildcard $(PHOTOGRAPHS)/*) benchmarks/beside.py
	$(IN) deploy.py run demo-bundle $(PHOTOGRAPHS) -o masks --overlay --confidence
	$(IN) -m benchmarks.beside $(PHOTOGRAPHS)/street-1.jpg masks/street-1.overlay.jpg $@

demo-bundle/manifest.json: $(INSTALLED) $(SOURCES) | $(VENV)/demo.stamp
	$(IN) deploy.py build-engine demo -o demo-bundle

$(VENV)/demo.stamp: $(INSTALLED) | $(IN)
	$(INSTALL) -e '.[cpu,export]'
	touch $@

$(VENV)/test.stamp: $(INSTALLED) | $(IN)
	$(INSTALL) -e '.[cpu,export,dev]'
	touch $(VENV)/demo.stamp $@

# setuptools compiles with CC, else with the compiler that Python itself was built with.
$(IN):
	@command -v $(PYTHON) >/dev/null || $(call fail,no $(PYTHON) here; install Python 3.11 or later$(,) or name it: make PYTHON=python3.12)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		$(call fail,$(PYTHON) is $$($(PYTHON) -V 2>&1)$(,) expected 3.11 or later; name another: make PYTHON=python3.12)
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		$(call fail,$(PYTHON) cannot make environments; install its venv: apt-get install python3-venv)
	@cc=$${CC:-$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("CC"))')}; command -v $${cc%% *} >/dev/null || \
		$(call fail,no C compiler ($${cc%% *}); install one: apt-get install gcc$(,) or name it: make CC=clang)
	$(PYTHON) -m venv $(VENV)

fail = { echo "error: $(1)" >&2; exit 1; }
, := ,
