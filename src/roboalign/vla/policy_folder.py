"""Read and check the folder of a policy: its policy.json and the backbone that it names."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from roboalign.actions.normalize import ActionStats
from roboalign.actions.relative import Relative
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import check_readable, hash_file, read_json
from roboalign.mllm.load import Mllm
from roboalign.vla.features import View, backbone_hash

READING_FIELDS = ("reading", "max_reasoning_tokens")
POLICY_FORMAT, RELATIVE_FORMAT = 1, 2
"""Format 2 is that of a policy whose head gives relative actions: a program that does not know
`relative` must not execute them as they are."""
POLICY_FIX = "train the head again, or copy the whole policy folder"


class BackboneReference(Config):
    """Path of the backbone relative to the policy's folder, its hash, and the precision in which it
    runs."""

    path: str
    sha256: str
    dtype: Literal["float32", "bfloat16"] = "float32"


def refer_to_backbone(mllm: Mllm, folder: Path) -> dict[str, str]:
    """Return the entry `backbone` of a policy in `folder`: relative path, hash and precision.

    Raises RoboAlignError if the backbone has no folder.
    """
    if mllm.folder is None:
        raise RoboAlignError(
            "the MLLM has no folder to refer to", fix="save it with save_mllm and load it"
        )
    return {
        "path": os.path.relpath(mllm.folder.resolve(), folder.resolve()),
        "sha256": backbone_hash(mllm.folder),
        "dtype": str(mllm.model.dtype).removeprefix("torch."),
    }


def read_policy_record(folder: Path) -> dict[str, Any]:
    """Return what policy.json says. Raises RoboAlignError if it is missing, broken or of another
    format."""
    path = folder / "policy.json"
    record = read_json(path, fix=POLICY_FIX)
    format = record.get("format") if isinstance(record, dict) else None
    if format not in (POLICY_FORMAT, RELATIVE_FORMAT):
        raise RoboAlignError(
            f"not a policy of format {POLICY_FORMAT} or {RELATIVE_FORMAT}",
            where=str(path),
            fix=POLICY_FIX,
        )
    if ("relative" in record) != (format == RELATIVE_FORMAT):
        raise RoboAlignError(
            f"format {format} and field 'relative' contradict each other: whether its actions are "
            "relative to the state is not known",
            where=str(path),
            fix=POLICY_FIX,
        )
    return record


def parse_entry(kind: Any, record: dict[str, Any], name: str, path: Path) -> Any:
    """Parse entry `name` of policy.json as a `kind`. Raises RoboAlignError naming a missing,
    unknown or ill-typed field."""
    if name not in record:
        raise RoboAlignError(f"field {name!r} is missing", where=str(path), fix=POLICY_FIX)
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Config) else {}
    for field in fields if isinstance(record[name], dict) else ():
        # A default could silently give a policy that acts differently.
        if field not in record[name]:
            raise RoboAlignError(
                f"field '{name}.{field}' is missing", where=str(path), fix=POLICY_FIX
            )
    try:
        return TypeAdapter(kind).validate_python(record[name])
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join([name, *(str(part) for part in fault["loc"])])
        raise RoboAlignError(
            f"field {field!r}: {fault['msg']}", where=str(path), fix=POLICY_FIX
        ) from None


def parse_stats(record: dict[str, Any], name: str, dim: int, path: Path) -> ActionStats:
    where = f"{path}, {name}"
    if not isinstance(record.get(name), dict):
        raise RoboAlignError("the statistics are missing", where=where, fix=POLICY_FIX)
    stats = ActionStats.from_dict(record[name], where=where)
    if stats.dim != dim:
        raise RoboAlignError(
            f"statistics of {stats.dim} dimensions for a head of {dim}", where=where, fix=POLICY_FIX
        )
    return stats


def parse_relative(
    record: dict[str, Any], action_dim: int, state_dim: int, path: Path
) -> Relative | None:
    """Return how the head's actions are relative to the state; None if they are not."""
    if "relative" not in record:
        return None
    relative: Relative = parse_entry(Relative, record, "relative", path)
    numbers = [*(number for _, number in relative.pairs), *relative.rotation]
    if relative.space.dim != action_dim or max(numbers, default=0) >= state_dim:
        raise RoboAlignError(
            f"field 'relative' is for other dimensions than {action_dim} of the action and "
            f"{state_dim} of the state",
            where=str(path),
            fix=POLICY_FIX,
        )
    return relative


def check_head_weights(path: Path, record: dict[str, Any], described: Path) -> None:
    """Raise RoboAlignError if the head's weights are not those that were written with
    policy.json."""
    check_readable(path, fix=POLICY_FIX)
    found = hash_file(path)
    if "head_sha256" not in record:
        fix = f'{POLICY_FIX}; or, if you trust the file, add "head_sha256": "{found}"'
        raise RoboAlignError("field 'head_sha256' is missing", where=str(described), fix=fix)
    if record["head_sha256"] != found:
        problem = "the head's weights are not those that were written (sha256 differs)"
        raise RoboAlignError(problem, where=str(path), fix=POLICY_FIX)


def check_head_reading(weights: Path, view: View, path: Path) -> None:
    """Raise RoboAlignError if the head was trained on another reading than policy.json names."""
    try:
        with safe_open(weights, "pt") as file:
            trained = (file.metadata() or {}).get("reading", "direct")
    except (OSError, SafetensorError):
        return  # `load_head_weights` says what is broken
    if trained != view.reading:
        raise RoboAlignError(
            f"view.reading is `{view.reading}`, and the head was trained on `{trained}`",
            where=str(path),
            fix=f"set view.reading to {trained}, or train a head on the other reading",
        )


def load_head_weights(head: nn.Module, path: Path) -> None:
    """Load the weights of a head. Raises RoboAlignError if they are broken or not its own."""
    try:
        weights = load_file(path)
        for name, value in head.state_dict().items():
            if name in weights and weights[name].dtype != value.dtype:
                raise RuntimeError(f"{name} is {weights[name].dtype}, not {value.dtype}")
        head.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:300]
        raise RoboAlignError(
            f"the head's weights cannot be read ({problem})", where=str(path), fix=POLICY_FIX
        ) from None
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise RoboAlignError(
            f"weights {broken[0]!r} are not finite", where=str(path), fix=POLICY_FIX
        )


def find_backbone(reference: BackboneReference, path: Path) -> Path:
    folder = (path.parent / reference.path).resolve()
    if not folder.is_dir():
        raise RoboAlignError(
            f"the backbone {folder} does not exist",
            where=str(path),
            fix="move it there, or set backbone.path (relative to this file's folder)",
        )
    if backbone_hash(folder) != reference.sha256:
        problem = "the backbone is not the one that this head was trained on (sha256 differs)"
        raise RoboAlignError(problem, where=str(folder), fix=POLICY_FIX)
    return folder


def parse_view(record: dict[str, Any], path: Path) -> View:
    """Parse the entry `view`. One without a reading is of the time when every head read the direct
    question."""
    told = record.get("view")
    if isinstance(told, dict):
        read_then = {name: View.model_fields[name].default for name in READING_FIELDS}
        record = {**record, "view": {**(read_then if "reading" not in told else {}), **told}}
    view: View = parse_entry(View, record, "view", path)
    return view
