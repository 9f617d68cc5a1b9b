# refimpl with its CUDA kernels, for one card or many:
#   docker build -f docker/cuda.Dockerfile -t refimpl:cuda .
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" refimpl:cuda refimpl train my.toml
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" refimpl:cuda \
#       torchrun --nproc-per-node=8 -m refimpl.train my.toml
# The toolkit must be of the CUDA version that torch was built with (its first number). ARCHES chooses the cards; without
# it the kernels are built for all that docs/install.md lists.
ARG CUDA=13.0.2
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS build
ARG TORCH=2.13.0
ARG PIP_EXTRA_INDEX_URL=
ARG ARCHES=
ENV PIP_NO_CACHE_DIR=1 PATH=/opt/refimpl/bin:${PATH}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/refimpl
RUN pip install "torch==${TORCH}" "setuptools>=77" ninja pybind11
COPY . /src
RUN REFIMPL_CUDA=1 CUDA_HOME=/usr/local/cuda ${ARCHES:+env TORCH_CUDA_ARCH_LIST="${ARCHES}"} \
    pip install --no-build-isolation "/src[report,fast,parquet,demo,hub,optimizers]"

# The compilers of the kernels stay behind; torch.compile needs a C++ compiler and Python's headers.
FROM nvidia/cuda:${CUDA}-base-ubuntu24.04
ENV PATH=/opt/refimpl/bin:${PATH}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/refimpl /opt/refimpl
WORKDIR /work
RUN refimpl doctor
CMD ["refimpl", "--help"]
