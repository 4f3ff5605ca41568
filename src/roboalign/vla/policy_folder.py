"""Read and check the folder of a policy: its policy.json and the backbone that it names."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from roboalign.actions.normalize import ActionStats
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.mllm.load import Mllm
from roboalign.vla.features import backbone_hash

POLICY_FORMAT = 1
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
    if not isinstance(record, dict) or record.get("format") != POLICY_FORMAT:
        raise RoboAlignError(
            f"not a policy of format {POLICY_FORMAT}", where=str(path), fix=POLICY_FIX
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
