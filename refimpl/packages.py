"""The packages that some features need and the package itself does not, and the line that installs one.

The line names the package, not an extra of refimpl: so it is right beside a clone and a source distribution too.
"""

OPTIONAL = {
    "matplotlib": "3.8",
    "simplejpeg": "1.8",
    "pyarrow": "15",
    "ftfy": "6.1",
    "scikit-image": "0.25",
    "scikit-learn": "1.5",
    "tensorboard": "2.16",
    "wandb": "0.17",
    "torchao": "0.16",
    "prodigyopt": "1.1",
    "hypothesis": "6.120",
    "huggingface_hub": "0.34",
    "diffusers": "0.35",
    "k-diffusion": "",
    "starlette": "1.0",
    "uvicorn": "0.34",
}
"""The oldest version that will do, by package; pyproject.toml's extras say the same."""


def install_line(package: str, options: str = "") -> str:
    """The command that installs an optional package, for a message.

    options  pip's, such as "--no-deps"
    """
    least = OPTIONAL[package]
    wanted = f'"{package}>={least}"' if least else package
    return " ".join(filter(None, ("pip install", options, wanted)))
