"""Locate the pretrained tiny model that ships with the package; without PyTorch, so that a check is
quick."""

from importlib.resources import files
from pathlib import Path

from roboalign.core.errors import RoboAlignError


def pretrained_folder() -> Path:
    """Return the folder of the shipped base model, whether or not it is complete."""
    return Path(str(files("roboalign"))) / "mllm" / "pretrained" / "tiny"


def builtin_folder() -> Path:
    """Return the folder of the tiny pretrained model that ships with the package. Raises
    RoboAlignError if it is missing."""
    folder = pretrained_folder()
    if not (folder / "config.json").is_file():
        raise RoboAlignError(
            "the shipped base model is missing",
            where=str(folder),
            fix="install the package again, or remake the model with `make base`",
        )
    return folder
