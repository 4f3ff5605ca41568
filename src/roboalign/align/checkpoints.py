"""Manage the checkpoints of an MLLM training: which ones can be resumed, and the records that
belong to them."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from roboalign.align.lora import adapted
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, hash_file, no_room, read_jsonl, write_json
from roboalign.core.progress import say

MANIFEST = "roboalign.json"
"""Written last into a checkpoint: hashes of its files, settings, counters."""
ROUNDING = {
    "micro_batch_size"
}  # settings that only change how sums round, like the number of processes


@contextmanager
def room_on_disk(
    staging: Path, final: Path, model: Any, *, optimizer: bool, kept: Callable[[], Path | None]
) -> Iterator[None]:
    """Handle a full disk while `model` is written to the folder `staging`, which is then renamed to
    `final`.

    If the disk is full or a quota is used up, this removes `staging` and raises RoboAlignError. The
    error says what did not fit, how much is needed and free, and that the same command resumes from
    `kept()`. `optimizer` counts AdamW's state.
    """
    try:
        yield
    except (
        Exception
    ) as error:  # torch and safetensors raise their own errors, which only their text identifies
        if not (reason := no_room(error)):
            raise
        shutil.rmtree(staging, ignore_errors=True)
        whole = kept()
        goes_on = (
            f"resumes from {whole.name}, which is complete"
            if whole
            else "starts over, since there is no checkpoint"
        )
        raise RoboAlignError(
            f"cannot be written ({reason}): {final.name} takes about {_needed(model, optimizer) / 1e9:.3f} GB, and "
            f"{shutil.disk_usage(staging.parent).free / 1e9:.3f} GB are free",
            where=str(final),
            fix=f"free space, or move the run's folder to a larger disk; the same command {goes_on}.",
        ) from None


def _needed(model: Any, optimizer: bool) -> int:
    """Return the bytes of the parameters and, with `optimizer`, of AdamW's two moments for the
    trained ones. With the optimizer, only adapters are written if there are any."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    all_of_it = sum(p.numel() * p.element_size() for p in model.parameters())
    written = trained if adapted(model) and optimizer else all_of_it
    return written + 2 * trained * optimizer


def last_checkpoint(folder: Path, fingerprint: dict[str, Any]) -> Path | None:
    """Return the newest complete checkpoint in `folder`; report damaged ones on stderr and skip
    them.

    Raises RoboAlignError if it was written with settings or data other than `fingerprint`.
    """
    for checkpoint in reversed(checkpoints_in(folder)):
        fault = _damage(checkpoint)
        if fault:
            say(f"{checkpoint}: ignored, {fault}")
            continue
        written_for = read_checkpoint_manifest(checkpoint)["fingerprint"]
        current = json.loads(json.dumps(fingerprint))
        names = (written_for.keys() | current.keys()) - ROUNDING
        if changed := sorted(name for name in names if written_for.get(name) != current.get(name)):
            raise RoboAlignError(
                f"this checkpoint was written with another {', '.join(changed)}",
                where=str(checkpoint),
                fix=f"remove {folder} to start over, or restore the settings.",
            )
        return checkpoint
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def write_manifest(
    checkpoint: Path, step: int, fingerprint: dict[str, Any], totals: dict[str, float]
) -> None:
    """Write the manifest that completes a checkpoint: step, settings, counters, and each file's
    size and sha256."""
    files = {
        str(path.relative_to(checkpoint)): [path.stat().st_size, hash_file(path)]
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    manifest = {"step": step, "files": files, "fingerprint": fingerprint, "totals": totals}
    write_json(checkpoint / MANIFEST, manifest)


def read_checkpoint_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return what `write_manifest` wrote. Raises ValueError if it is anything else."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    shape = {"step": int, "files": dict, "fingerprint": dict, "totals": dict}
    for name, kind in shape.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(name), kind):
            raise ValueError(f"`{name}` is missing or no {kind.__name__}")
    if checkpoint.name != f"checkpoint-{manifest['step']}" or not manifest["files"]:
        raise ValueError("it is not that of this checkpoint")
    if not isinstance(manifest["totals"].get("seconds"), (int, float)):
        raise ValueError("`totals` has no seconds")
    return manifest


def _damage(checkpoint: Path) -> str:
    """Return the damage of a checkpoint; "" if each file has the recorded size and sha256."""
    try:
        recorded = read_checkpoint_manifest(checkpoint)["files"]
        for name, (size, digest) in recorded.items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, {size} were written"
            if hash_file(file) != digest:
                return f"{name} is not what was written (sha256)"
    except (OSError, ValueError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return ""


WeightsDigest = Callable[[nn.Module], str]


def weights_fingerprint(model: nn.Module) -> str:
    """Return the sha256 of the names and first values of all parameters, which identifies a model
    without reading all of it."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(
            name.encode() + parameter.detach().flatten()[:64].double().cpu().numpy().tobytes()
        )
    return digest.hexdigest()


def truncate_records(path: Path, last_step: int) -> None:
    """Drop the records after `last_step` from a jsonl file, since a resumed run writes those steps
    again."""
    if not path.exists():
        return
    kept = [record for record in read_jsonl(path) if record["step"] <= last_step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))
