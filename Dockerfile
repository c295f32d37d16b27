# The server, for CPUs as it stands:
#
#   docker build -t rerank-grpc .
#
# and with CUDA's wheels of torch:
#
#   docker build -t rerank-grpc:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# `make image` takes docker, podman or buildah, and fills in the labels; docs/operations/containers.md tells how it is
# built and run. The base is Debian's, on any processor, with Python 3.11 or later and venv on its PATH.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# What the service needs. Only a change in requirements/ changes it: see `make lock`.
FROM ${PYTHON_IMAGE} AS libraries
# A further package index, to choose torch's build by; empty takes torch from the default index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# pip stands beside the environment that ships, not in it.
ENV PATH=/opt/pip/bin:$PATH \
    PIP_PYTHON=/opt/rerank/bin/python \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/rerank
WORKDIR /src
COPY requirements requirements/
RUN pip install --no-compile --no-deps --only-binary :all: --require-hashes -r requirements/libraries.txt && \
    pip install --no-compile --only-binary :all: -c requirements/torch.txt \
      ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} torch

# The same without what is never run: what builds or tests torch, the other libraries' tests, what shows other pages
# than /docs. Large files that seldom change go apart, so that a newer small library is a small pull.
# Times, and bytecode that does not carry them, make the same files the same layer on every machine.
FROM libraries AS pruned
COPY scripts/prune_image.py scripts/
RUN pip uninstall -qy setuptools && \
    PYTHONHASHSEED=0 /opt/rerank/bin/python -B scripts/prune_image.py /opt/rerank /opt/large

# The kernels in C, for every level of this processor's kind: the image has no compiler. Status 3 says that there are
# none for it, and torch's operations do the same.
FROM ${PYTHON_IMAGE} AS kernels
# Debian keeps no older version of gcc to pin.
# hadolint ignore=DL3008
RUN command -v gcc || { apt-get update && \
    apt-get install -y --no-install-recommends gcc libc6-dev && \
    rm -rf /var/lib/apt/lists/*; }
WORKDIR /src
COPY scripts/build_kernels.py scripts/
COPY rerank_grpc rerank_grpc/
RUN mkdir /built && { python3 -B scripts/build_kernels.py /built || [ $? -eq 3 ]; }

# The service itself: a new version sends this layer of a few MB alone.
FROM libraries AS service
COPY . .
COPY --from=kernels /built /built
RUN pip install --no-compile --no-deps --no-build-isolation --target /opt/service . && \
    cp -r /built /opt/service/rerank_grpc/kernels/built && \
    PYTHONHASHSEED=0 /opt/rerank/bin/python -B scripts/prune_image.py /opt/service

FROM ${PYTHON_IMAGE}
# Kubernetes' runAsNonRoot asks for a number; a volume made for /models belongs to it.
RUN echo "rerank:x:10001:10001::/models:/usr/sbin/nologin" >>/etc/passwd && \
    echo "rerank:x:10001:" >>/etc/group && \
    install -d -o 10001 -g 10001 /models
COPY --from=pruned /opt/large /opt/large
COPY --from=pruned /opt/rerank /opt/rerank
COPY --from=service /opt/service /opt/service
ENV PATH=/opt/service/bin:/opt/rerank/bin:$PATH \
    PYTHONPATH=/opt/service \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models/.huggingface \
    RERANK_MODELS_DIR=/models \
    RERANK_HOST=0.0.0.0 \
    RERANK_REST_HOST=0.0.0.0 \
    RERANK_METRICS_HOST=0.0.0.0
VOLUME /models
WORKDIR /models
USER 10001:10001
EXPOSE 50051 6006 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["rerank-grpc", "health", "--here", "--timeout", "3"]
# No shell in between: the server itself gets SIGTERM, and ends the calls in progress first.
ENTRYPOINT ["rerank-grpc"]
CMD ["serve"]
# `make image` adds the version, the commit and its time.
LABEL org.opencontainers.image.title="rerank-grpc" \
      org.opencontainers.image.description="A rerank service over gRPC and REST" \
      org.opencontainers.image.licenses="Apache-2.0"
