"""Open a policy of either kind, and say what both offer: a head's (`head_policy.py`) and one whose
actions are the MLLM's own tokens (`token_policy.py`)."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.core.hub import resolve
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy_folder import (
    POLICY_FIX,
    BackboneReference,
    find_backbone,
    parse_entry,
    read_policy_record,
)
from roboalign.vla.policy_input import NoiseKey, ObservationLike
from roboalign.vla.token_policy import TokenPolicy

KINDS: dict[str, type[HeadPolicy] | type[TokenPolicy]] = {
    kind.kind: kind for kind in (HeadPolicy, TokenPolicy)
}
"""The kinds of policies by the name in policy.json."""


class Policy(Protocol):
    """Map observations to chunks of raw actions.

    Servers, rollouts, replays and evaluations take any object that offers this.
    """

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that it sees, in order."""
        ...

    @property
    def horizon(self) -> int:
        """H, the number of actions in a chunk."""
        ...

    @property
    def action_dim(self) -> int:
        """A, the number of dimensions of an action."""
        ...

    @property
    def state_dim(self) -> int | None:
        """S, the number of dimensions of the proprioception; None if it reads none."""
        ...

    @property
    def guided(self) -> bool:
        """Whether `act_batch` takes `guides`, for real-time chunking."""
        ...

    @property
    def remembers(self) -> bool:
        """Whether an answer can depend on the episode's earlier ones. A request without a noise key
        then needs one that names its episode."""
        ...

    def act(
        self, observation: ObservationLike, noise_key: NoiseKey | None = None
    ) -> Float[np.ndarray, "{self.horizon} {self.action_dim}"]:
        """Return the chunk for one observation, float32 in raw units."""
        ...

    def act_batch(
        self,
        observations: Sequence[ObservationLike],
        noise_keys: Sequence[NoiseKey | None] | None = None,
    ) -> Float[np.ndarray, "{len(observations)} {self.horizon} {self.action_dim}"]:
        """Return chunks for a batch of observations, float32 in raw units. An answer does not
        depend on what else is in the batch."""
        ...

    def act_and_count(
        self,
        observations: Sequence[ObservationLike],
        noise_keys: Sequence[NoiseKey | None] | None = None,
    ) -> tuple[
        Float[np.ndarray, "{len(observations)} {self.horizon} {self.action_dim}"],
        list[Mapping[str, int]],
    ]:
        """Return `act_batch`'s chunks, and what each decision added to `counts`."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """What it has counted over its decisions, for example `holds`; empty if it counts
        nothing."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Return what a server says of it, besides what it asks for and answers."""
        ...

    @staticmethod
    def load(folder: str | Path, device: str = "cpu", *, compile: bool = False) -> "Policy":
        """Read a policy and its backbone, of the kind that policy.json names.

        `folder` is a folder, or the Hub id of a policy uploaded by `roboalign push`. A policy.json
        without `kind` is a head's: every one was, before there were other kinds. `compile` compiles
        a head's policy; token policies refuse it.

        Raises RoboAlignError, naming file and field, if anything is missing, broken or
        inconsistent, or if the policy was made for another backbone.
        """
        folder = resolve(folder, "policy")
        kind = read_policy_record(folder).get("kind", HeadPolicy.kind)
        if kind not in KINDS:
            raise RoboAlignError(
                f"there is no kind of policy {str(kind)[:60]!r}. Available: {', '.join(KINDS)}",
                where=str(folder / "policy.json"),
                fix="update roboalign",
            )
        return KINDS[kind].load(folder, device, compile=compile)


def policy_files(folder: str | Path) -> tuple[str, dict[str, Path]]:
    """List what a copy of a policy on another machine must contain: its folder and its backbone's,
    in the same relative places.

    Returns the policy's folder within the copy, and every file by its path within the copy. Raises
    RoboAlignError if policy.json or the backbone is missing or broken.
    """
    path = Path(folder).resolve() / "policy.json"
    backbone = find_backbone(
        parse_entry(BackboneReference, read_json(path, fix=POLICY_FIX), "backbone", path), path
    )
    root = Path(os.path.commonpath([path.parent, backbone]))
    files = [
        file for one in (path.parent, backbone) for file in sorted(one.iterdir()) if file.is_file()
    ]
    return str(path.parent.relative_to(root)), {str(file.relative_to(root)): file for file in files}
