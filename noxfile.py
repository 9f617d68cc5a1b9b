"""What a developer and the CI run: `nox -s demo`, `nox -s tests`, and the checks beside them.

Every session builds an environment of its own; with `--no-venv` it uses the one that is active and installs nothing.
Arguments after `--` are passed through.
"""

from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True

BUILD = ["torch", "ninja", "pybind11", "setuptools>=77"]
# k-diffusion asks for packages that its samplers do not use, torchvision among them, so its real needs are listed.
# Of open_clip_torch, which asks for torchvision too, the tests load the tokenizer's file alone.
ORACLES = ["k-diffusion", "torchsde", "torchdiffeq", "trampoline", "open_clip_torch"]
# What ComfyUI and sd-scripts import besides; tests/peers/stand_ins.py stands in for torchvision and torchaudio.
PEERS = ["einops", "aiohttp", "yarl", "pyyaml", "alembic", "sqlalchemy", "pydantic-settings", "psutil", "toml",
         "opencv-python-headless", "ftfy", "omegaconf"]  # fmt: skip
KOHYA_TRANSFORMERS = ["transformers==4.54.1", "tokenizers>=0.21,<0.22", "huggingface-hub==0.34.3",
                      "diffusers==0.32.1", "accelerate==1.6.0"]  # fmt: skip  # as sd-scripts pins them


def install(session: nox.Session, *requirements: str) -> None:
    """Installs pinned packages, unless the session runs in the active environment."""
    if not isinstance(session.virtualenv, nox.virtualenv.PassthroughEnv):
        session.install("-c", "constraints.txt", *requirements)


def install_project(session: nox.Session, extra: str) -> None:
    """Installs this package with its compiled extension, built against the torch that was just installed."""
    install(session, *BUILD)
    install(session, "--no-build-isolation", "-e", f".[{extra}]")


def requirements(extra: str) -> list[str]:
    """What the package and one of its extras require, as pyproject.toml lists it."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


@nox.session
def demo(session: nox.Session) -> None:
    """The main job end to end, from images to a report; exits non-zero and says so if a figure is missed."""
    install_project(session, "demo")
    session.run("refimpl", "demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests except those marked slow, fuzz, faults or peers, on all cores; `-- -n 0` runs them in one process."""
    install_project(session, "test")
    install(session, "--no-deps", *ORACLES)
    # Half of the tests to each of two processes, and from a busy one to one that has finished.
    spread = ("-n", "logical", "--maxprocesses", "8", "--dist", "worksteal")
    session.run("pytest", *spread, "-m", "not slow and not fuzz and not faults", *session.posargs)


# The oldest and the newest Python and torch that pyproject.toml allows; PyPI has wheels of torch for each pair.
CORNERS = [
    ("3.11", "2.9.0"),
    ("3.11", "2.15.0"),
    ("3.13", "2.9.0"),
    ("3.13", "2.15.0"),
    ("3.14", "2.9.0"),
    ("3.14", "2.15.0"),
]


@nox.session
@nox.parametrize("python,torch", CORNERS)
def matrix(session: nox.Session, torch: str) -> None:
    """The fast tests on the oldest and newest Python and torch; a Python that is not installed is skipped and named.

    With no pins but torch's: what pip finds for that Python. Arguments after -- replace those of the tests.
    """
    if not isinstance(session.virtualenv, nox.virtualenv.PassthroughEnv):
        session.install(f"torch=={torch}", *BUILD[1:])
        session.install("--no-build-isolation", f"torch=={torch}", "-e", ".[test]")
        session.install("--no-deps", *ORACLES)
    spread = ("-n", "logical", "--maxprocesses", "8", "--dist", "worksteal")
    session.run("pytest", *(session.posargs or (*spread, "-m", "not slow and not fuzz and not faults")))


@nox.session
def optimizers(session: nox.Session) -> None:
    """The tests of the optimizers, the slow ones too, with torchao, which every process would import in `tests`."""
    install_project(session, "test,optimizers")
    session.run("pytest", "tests/train/optimizer", "-m", "not fuzz and not faults", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that need full-size models or many minutes."""
    install_project(session, "test")
    install(session, "--no-deps", *ORACLES)
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Hundreds of thousands of broken files: each must end in our error or in the right result."""
    install_project(session, "test")
    install(session, "--no-deps", *ORACLES)
    session.run("pytest", "-m", "fuzz", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Kills, signals, bad numbers and damaged files, by the hundred; counts go to benchmarks/results/faults.json."""
    install_project(session, "test")
    counts = Path(session.create_tmp()) / "faults.jsonl"
    counts.unlink(missing_ok=True)
    spread = ("-n", "logical", "--maxprocesses", "8", "--dist", "worksteal")
    session.run("pytest", "tests/faults", *spread, *session.posargs, env={"REFIMPL_FAULTS": str(counts)})
    session.run("python", "-m", "benchmarks.faults", str(counts))


@nox.session
def peers(session: nox.Session) -> None:
    """Our files and nodes in ComfyUI, sd-scripts, Forge and A1111: `nox -s peers -- DIR`, with checkouts in DIR.

    tests/peers/checkouts.py names the commits; what is absent is skipped by name. One test needs 7 GB of disk.
    """
    if not session.posargs:
        session.error("name the folder that holds the checkouts: nox -s peers -- DIR")
    folder, *rest = session.posargs
    install_project(session, "test")
    install(session, "--no-deps", *ORACLES)
    install(session, *PEERS)
    older = Path(session.create_tmp()) / "kohya-transformers"
    if not older.is_dir() and not isinstance(session.virtualenv, nox.virtualenv.PassthroughEnv):
        session.install("--no-deps", "--target", str(older), *KOHYA_TRANSFORMERS)
    environment = {"REFIMPL_PEERS": str(Path(folder).resolve()), "REFIMPL_PEERS_TRANSFORMERS": str(older)}
    session.run("pytest", "-m", "peers", "tests/peers", "-v", "-rs", "-s", *rest, env=environment)


@nox.session
def studio(session: nox.Session) -> None:
    """The pages in a headless Chromium, which must be installed; without it the tests say so and are skipped."""
    install_project(session, "test")
    install(session, "playwright")
    session.run("pytest", "tests/studio/page", "tests/report/runs", "-rs", "-s", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """The tests' own test: declared mistakes, each made in a copy, must make tests fail. Takes minutes."""
    install_project(session, "test")
    install(session, "--no-deps", *ORACLES)
    session.run("python", "-m", "tests.meta.run_mutants", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff and clang-format, without changing a file."""
    install(session, "ruff", "clang-format")
    session.run("ruff", "check", ".", *session.posargs)
    session.run("ruff", "format", "--check", ".")
    sources = session.run(
        "git", "ls-files", "csrc/*.h", "csrc/*.cpp", "csrc/*.cu", "csrc/*.cuh", silent=True, external=True
    )
    if sources and sources.split():
        session.run("clang-format", "--dry-run", "--Werror", *sources.split())


@nox.session
def types(session: nox.Session) -> None:
    """pyright over the package, the benchmarks and the examples; it reads a stub of the compiled extension."""
    install(session, "pyright", *requirements("test"))
    session.run("pyright", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site into docs/_build/html, from what the sources say; a warning is an error. Offline.

    Arguments after -- go to sphinx-build.
    """
    # The package is imported from here, the studio's pages too; its kernels are not needed.
    packages = dict.fromkeys([*requirements("docs"), *requirements("studio")])
    install(session, *packages)
    session.run(
        "python",
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-j",
        "auto",
        *session.posargs,
        "docs",
        "docs/_build/html",
    )
    session.log("open docs/_build/html/index.html")


@nox.session
def nvcc(session: nox.Session) -> None:
    """Compiles every .cu file for sm_80, sm_90 and sm_100; fails on a spill and on narrow accesses. Needs no GPU."""
    install(session, "nvidia-cuda-nvdisasm")
    session.run("python", "csrc/compile_check.py", *session.posargs)


@nox.session
def cuda_build(session: nox.Session) -> None:
    """Builds, links and imports the whole CUDA extension with the CUDA 13 build of torch. Needs nvcc, no GPU."""
    if not isinstance(session.virtualenv, nox.virtualenv.PassthroughEnv):
        session.install("torch==2.11.0", "numpy", "ninja", "pybind11", "setuptools>=77")
    session.run("python", "csrc/cuda_build.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """All on this CPU but bench_interop; each asserts agreement first and writes to benchmarks/results."""
    install_project(session, "test")
    for name in ("bench_plan", "bench_unet", "bench_ops", "bench_images", "bench_cache"):
        session.run("python", "-m", f"benchmarks.{name}", *session.posargs)
    for name in ("bench_index", "bench_decoder", "bench_threads", "bench_watch"):
        session.run("python", "-m", f"benchmarks.{name}")
    session.run("python", "-m", "benchmarks.tables")
    # The operations once more under pytest-benchmark, saved in .benchmarks for `pytest-benchmark compare`.
    limits = (
        "--benchmark-max-time=0.05",
        "--benchmark-min-rounds=3",
        "--benchmark-columns=median,iqr,rounds",
    )
    session.run(
        "pytest", "benchmarks/test_bench_ops.py", "--benchmark-enable", "--benchmark-autosave", "-q", *limits
    )
