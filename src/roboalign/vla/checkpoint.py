"""Write the checkpoints of a head's training, and resume from them after a kill."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.swa_utils import AveragedModel

from roboalign.core.distributed import leads
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, read_jsonl, write_text
from roboalign.vla.head import FlowMatchingHead


@dataclass(frozen=True)
class Trained:
    """Everything that a step changes. `average` is None if the weights are not averaged."""

    head: FlowMatchingHead
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None

    @property
    def result(self) -> FlowMatchingHead:
        """Return the head that is evaluated and saved."""
        return self.head if self.average is None else cast(FlowMatchingHead, self.average.module)

    def parts(self) -> dict[str, Any]:
        """Return the parts by their names in a checkpoint."""
        parts = {"head": self.head, "optimizer": self.optimizer}
        return parts if self.average is None else parts | {"average": self.average}


def save(path: Path, trained: Trained, progress: dict[str, Any]) -> None:
    """Write a checkpoint. `progress` has step, settings, seconds, and the losses since the last
    record of metrics."""
    with atomic_path(path) as temporary:
        torch.save(
            progress | {name: part.state_dict() for name, part in trained.parts().items()},
            temporary,
        )


def resume(
    path: Path, metrics: Path, trained: Trained, settings: str
) -> tuple[int, float, list[float]]:
    """Load the checkpoint into `trained` and return its step, seconds and losses. Without a
    checkpoint, return 0, 0, [].

    Removes the records of `metrics` after its step. Raises RoboAlignError if it cannot be read or
    has other `settings`.
    """
    if not path.exists():
        if leads():
            metrics.unlink(missing_ok=True)
        return 0, 0.0, []
    saved = read_checkpoint(path, settings, next(trained.head.parameters()).device)
    for name, part in trained.parts().items():
        part.load_state_dict(saved[name])
    if leads():
        kept = [record for record in read_jsonl(metrics) if record["step"] <= saved["step"]]
        write_text(metrics, "".join(json.dumps(record) + "\n" for record in kept))
    return saved["step"], saved["seconds"], saved["losses"]


def read_checkpoint(path: Path, settings: str, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint. Raises RoboAlignError if it cannot be read or has other `settings`."""
    fix = f"remove {path.parent} and train again"
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise RoboAlignError(
            f"the checkpoint cannot be read ({error})", where=str(path), fix=fix
        ) from None
    if saved["settings"] != settings:
        raise RoboAlignError(
            "the checkpoint is of other settings or data", where=str(path), fix=fix
        )
    return saved
