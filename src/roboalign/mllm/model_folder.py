"""Open third-party model folders: check what must be there, and refuse with one message what is not
allowed.

No other module opens them. No code of a folder is ever run or asked about, and nothing in it is
unpickled.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_readable

TRUSTED: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments for every loader of transformers: read from the folder only, and run none of its
code."""
LFS = b"version https://git-lfs.github.com/spec"
CONTENT = "check that the folder is complete and holds an image-text-to-text model; save or download it again"
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
    "model.safetensors.index.json",
)
"""Files that hold a JSON object."""


def check_model_folder(folder: Path) -> None:
    """Raise RoboAlignError if a folder cannot be opened here, before transformers looks at it."""
    if not (folder / "config.json").is_file():
        raise RoboAlignError(
            "no model here: config.json does not exist",
            where=str(folder),
            fix="give the folder of a Hugging Face model (config.json, *.safetensors, tokenizer and processor files)",
        )
    for path in sorted(folder.iterdir()):
        if not path.is_dir():  # opening a pipe would wait forever
            check_readable(path, fix=CONTENT)
    _refuse_pointers(folder)
    for name in _SETTINGS:
        if (folder / name).exists():
            read_settings(folder / name)
    _check_length(folder / "tokenizer_config.json")
    _refuse_empty_sections(folder / "config.json")
    _refuse_own_code(folder)
    _require_safetensors(folder)
    _check_tokenizer(folder / "tokenizer.json")


def _refuse_empty_sections(path: Path) -> None:
    """Refuse a part of the model without settings.

    transformers would build its default one, of billions of parameters, before it looks at the
    weights: 20 GB of memory for a damaged folder of any size.
    """
    settings = read_settings(path)
    for name in ("text_config", "vision_config"):
        if name in settings and not settings[name]:
            raise RoboAlignError(f"`{name}` is empty", where=str(path), fix=CONTENT)


def config_of(folder: Path) -> Any:
    """Return the folder's configuration, an instance of a transformers class."""
    check_model_folder(folder)
    with opened(folder, "config.json"):
        return AutoConfig.from_pretrained(folder, **TRUSTED)


def read_settings(path: Path) -> dict[str, Any]:
    """Read the JSON object of a settings file. Raises RoboAlignError if it holds anything else."""
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RoboAlignError(
            f"cannot be read as JSON ({error})", where=str(path), fix=CONTENT
        ) from None
    if not isinstance(settings, dict):
        kind = type(settings).__name__
        raise RoboAlignError(f"holds a {kind}, not an object", where=str(path), fix=CONTENT)
    return settings


@contextmanager
def opened(folder: Path, file: str) -> Iterator[None]:
    """Turn any error that another library's loader raises on a damaged folder into one
    RoboAlignError.

    transformers, tokenizers and huggingface_hub raise twenty kinds of errors here, including a bare
    Exception.
    """
    try:
        yield
    except RoboAlignError:
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RoboAlignError(
            f"cannot be opened as a multimodal LLM ({file}: {said})", where=str(folder), fix=CONTENT
        ) from error


def _refuse_pointers(folder: Path) -> None:
    """Refuse Git LFS pointers: a clone without Git LFS has a few lines of text in place of each
    large file."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < 1024:
            with path.open("rb") as file:
                pointer = file.read(len(LFS)) == LFS
            if pointer:
                raise RoboAlignError(
                    "is a Git LFS pointer, not the file itself",
                    where=str(path),
                    fix=f"run `git lfs pull` in {folder}",
                )


def _refuse_own_code(folder: Path) -> None:
    """Refuse a folder that comes with its own class, because that class would have to be run."""
    settings = read_settings(folder / "config.json")
    kind = settings.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        return
    own = " and its class comes with the folder (auto_map)" if "auto_map" in settings else ""
    raise RoboAlignError(
        f"model_type {kind!r} is not a class of transformers{own}; models with code of their own are not supported",
        where=str(folder / "config.json"),
        fix="use a version of the model that transformers itself has a class for (names often end in -hf)",
    )


def _require_safetensors(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise RoboAlignError(
            f"the weights are pickles ({pickles[0]}), which are never opened",
            where=str(folder),
            fix="save the model as safetensors, as `model.save_pretrained(folder)` of transformers 5 does",
        )


def _check_length(path: Path) -> None:
    """Check that model_max_length is a number: transformers compares the length of each text with
    it, whatever it is."""
    length = read_settings(path).get("model_max_length") if path.exists() else None
    if length is not None and (isinstance(length, bool) or not isinstance(length, (int, float))):
        raise RoboAlignError(
            f"model_max_length is {length!r}, not a number of tokens", where=str(path), fix=CONTENT
        )


def _check_tokenizer(path: Path) -> None:
    """Distinguish a file of a newer tokenizers library from a damaged one."""
    if not path.exists():
        return
    read_settings(path)
    try:
        tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise RoboAlignError(
            f"tokenizers {tokenizers.__version__} cannot read it ({error})",
            where=str(path),
            fix="the file is damaged, or a newer tokenizers library wrote it: install that version, or save it again",
        ) from None
