# refimpl without CUDA, for data sets, conversions, conformance checks and small models:
#   docker build -f docker/cpu.Dockerfile -t refimpl:cpu .
#   docker run --rm -v "$PWD:/work" refimpl:cpu refimpl data check images
# The torch of PyPI brings CUDA's libraries, several gigabytes of them. With the address of PyTorch's index of CPU builds
# in --build-arg PIP_EXTRA_INDEX_URL=… and --build-arg TORCH=2.13.0+cpu, the image does without.
FROM python:3.13-slim-bookworm
ARG TORCH=2.13.0
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN pip install "torch==${TORCH}" "setuptools>=77" ninja pybind11
COPY . /src
RUN REFIMPL_CUDA=0 pip install --no-build-isolation "/src[report,fast,parquet,demo,hub,optimizers]" \
    && rm -rf /src
WORKDIR /work
RUN refimpl doctor
CMD ["refimpl", "--help"]
