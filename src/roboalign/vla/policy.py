"""Define the policy: a frozen MLLM, a flow-matching head and the statistics that convert its output
to raw actions."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Num, UInt8
from pydantic import PositiveInt, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import roboalign
from roboalign.actions.normalize import ActionStats
from roboalign.conversations.styles.registry import require_model_style
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, check_readable, hash_file, read_json, write_json
from roboalign.core.hub import resolve
from roboalign.mllm.compiled import compile_layers
from roboalign.mllm.hidden import truncate_layers
from roboalign.mllm.load import Mllm, load_mllm
from roboalign.vla.features import View, backbone_hash
from roboalign.vla.guidance import Guide, Rest, make_guide
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape

POLICY_FORMAT = 1
HEAD_FILE = "head.safetensors"
COMPILED_MULTIPLE = 64  # tokens; instructions of similar length share compiled code
_FIX = "train the head again, or copy the whole policy folder"
NoiseKey = tuple[str | int, ...]
"""Identifies one decision, for example (task, seed, step); it determines the initial noise of the
flow."""


class ObservationLike(Protocol):
    """Input of a policy: any object with these attributes."""

    @property
    def images(self) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
        """Images by camera, RGB."""
        ...

    @property
    def state(self) -> Num[np.ndarray, " state"]:
        """Proprioception."""
        ...

    @property
    def instruction(self) -> str: ...


class BackboneReference(Config):
    """Path of the backbone relative to the policy's folder, its hash, and the precision in which it
    runs."""

    path: str
    sha256: str
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass
class Policy:
    """Map an observation to a chunk of raw actions. `state_stats` is None for a head without
    proprioception."""

    mllm: Mllm
    head: FlowMatchingHead
    view: View
    action_stats: ActionStats
    state_stats: ActionStats | None
    sampling_steps: int = 4
    multiple: int = 1
    """Prompts are padded to a multiple of this many tokens."""

    @property
    def horizon(self) -> int:
        """H, the number of actions in a chunk."""
        return self.head.shape.horizon

    def act(
        self, observation: ObservationLike, noise_key: NoiseKey | None = None
    ) -> Float[np.ndarray, "{self.horizon} {self.action_stats.dim}"]:
        """Return the chunk for one observation, float32 in raw units."""
        return self.act_batch([observation], [noise_key])[0]

    def act_batch(
        self,
        observations: Sequence[ObservationLike],
        noise_keys: Sequence[NoiseKey | None] | None = None,
        *,
        guides: Sequence[Rest | None] | None = None,
    ) -> Float[np.ndarray, "{len(observations)} {self.horizon} {self.action_stats.dim}"]:
        """Return chunks for a batch of observations, float32 in raw units.

        The key of a sample determines its initial noise, so its chunk does not depend on the rest
        of the batch. A key of None draws from torch's global generator. For real-time chunking,
        `guides` has what the robot has left of each previous chunk, from its observation on.

        Raises RoboAlignError if a camera is missing, a state has the wrong size, or the number of
        keys is wrong.
        """
        keys = [None] * len(observations) if noise_keys is None else list(noise_keys)
        if len(keys) != len(observations):
            raise RoboAlignError(
                f"{len(observations)} observations but {len(keys)} noise keys", where="noise_keys"
            )
        device = self.mllm.device
        noise = torch.stack([self._noise(key) for key in keys]).to(device)
        prompts = [
            self.view.prompt(observation.images, observation.instruction)
            for observation in observations
        ]
        states, mask = self.view.encode(self.mllm, prompts, multiple=self.multiple)
        self.head.eval()
        chunk = self.head.sample(
            states.float(),
            mask,
            self._state(observations),
            noise,
            steps=self.sampling_steps,
            **self._guide(guides),
        )
        return self.action_stats.denormalize(chunk.cpu().numpy())

    def compile(self) -> None:
        """Compile the backbone's layers and the head's sampling in this process; results of `act`
        differ by rounding.

        Compilation happens at the first call for each number of observations, image size and prompt
        length; prompts are padded to multiples of COMPILED_MULTIPLE tokens to limit these. It takes
        minutes on a CPU.
        """
        compile_layers(self.mllm.model, dynamic=False)
        self.head.sample = torch.compile(self.head.sample, dynamic=False)  # type: ignore[method-assign]
        self.multiple = COMPILED_MULTIPLE

    def save(self, folder: str | Path) -> None:
        """Write head.safetensors and policy.json, which names the backbone by relative path and
        hash; it is not copied.

        Raises RoboAlignError if the backbone has no folder.
        """
        if self.mllm.folder is None:
            raise RoboAlignError(
                "the MLLM has no folder to refer to", fix="save it with save_mllm and load it"
            )
        folder = Path(folder)
        backbone = os.path.relpath(self.mllm.folder.resolve(), folder.resolve())
        dtype = str(self.mllm.model.dtype).removeprefix("torch.")
        record = {
            "format": POLICY_FORMAT,
            "backbone": {
                "path": backbone,
                "sha256": backbone_hash(self.mllm.folder),
                "dtype": dtype,
            },
            "view": self.view.model_dump(),
            "head": self.head.config.model_dump(),
            "shape": self.head.shape.model_dump(),
            "sampling_steps": self.sampling_steps,
            "action_stats": self.action_stats.to_dict(),
            "state_stats": None if self.state_stats is None else self.state_stats.to_dict(),
            "versions": {"roboalign": roboalign.__version__}
            | {n: version(n) for n in ("torch", "transformers")},
        }
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            save_file(
                {name: value.contiguous() for name, value in self.head.state_dict().items()},
                temporary / HEAD_FILE,
            )
            record["head_sha256"] = hash_file(temporary / HEAD_FILE)
            write_json(temporary / "policy.json", record)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", *, compile: bool = False) -> "Policy":
        """Read a policy and its backbone, without the backbone's layers above `view.layer`.

        `folder` is a folder, or the Hub id of a policy uploaded by `roboalign push`. The backbone
        runs in the precision that computed the hidden states of the head's training. `compile`
        calls that method.

        Raises RoboAlignError, naming file and field, if anything is missing, broken or
        inconsistent, or if the head was trained on another backbone.
        """
        folder = resolve(folder, "policy")
        path = folder / "policy.json"
        record = read_json(path, fix=_FIX)
        if not isinstance(record, dict) or record.get("format") != POLICY_FORMAT:
            raise RoboAlignError(
                f"not a policy of format {POLICY_FORMAT}", where=str(path), fix=_FIX
            )
        view = _parse(View, record, "view", path)
        shape = _parse(HeadShape, record, "shape", path)
        config = _parse(HeadConfig, record, "head", path)
        sampling_steps = _parse(PositiveInt, record, "sampling_steps", path)
        action_stats = _stats(record, "action_stats", shape.action_dim, path)
        state_stats = (
            _stats(record, "state_stats", shape.state_dim, path) if config.proprioception else None
        )
        reference = _parse(BackboneReference, record, "backbone", path)
        backbone = _find_backbone(reference, path)
        head = FlowMatchingHead(config, shape)
        _check_weights(folder / HEAD_FILE, record, path)
        _load_weights(head, folder / HEAD_FILE)
        mllm = load_mllm(backbone, dtype=getattr(torch, reference.dtype), device=device)
        text = mllm.model.config.get_text_config()
        if text.hidden_size != shape.vlm_width or text.num_hidden_layers < view.layer:
            problem = (
                f"the head reads layer {view.layer} of width {shape.vlm_width}, the backbone has "
                f"{text.num_hidden_layers} layers of width {text.hidden_size}"
            )
            raise RoboAlignError(problem, where=str(path), fix=_FIX)
        require_model_style(mllm, view.prompts, where=str(backbone))
        truncate_layers(mllm, view.layer)
        policy = cls(
            mllm, head.to(mllm.device).eval(), view, action_stats, state_stats, sampling_steps
        )
        if compile:
            policy.compile()
        return policy

    def _noise(
        self, key: NoiseKey | None
    ) -> Float[Tensor, "{self.horizon} {self.action_stats.dim}"]:
        size = (self.horizon, self.head.shape.action_dim)
        if key is None:
            return torch.randn(size)
        digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
        seed = int.from_bytes(digest[:8], "little", signed=True)
        return torch.randn(size, generator=torch.Generator().manual_seed(seed))

    def _guide(self, guides: Sequence[Rest | None] | None) -> dict[str, Guide]:
        """Return the additional arguments of `sample`; empty if no sample is guided."""
        if guides is None or all(rest is None for rest in guides):
            return {}
        device = self.mllm.device
        return {"guide": make_guide(guides, self.action_stats, self.horizon, device)}

    def _state(
        self, observations: Sequence[ObservationLike]
    ) -> Float[Tensor, "{len(observations)} {self.state_stats.dim}"] | None:
        if self.state_stats is None:
            return None
        state = np.stack([observation.state for observation in observations])
        return torch.from_numpy(self.state_stats.normalize(state)).to(self.mllm.device)


def policy_files(folder: str | Path) -> tuple[str, dict[str, Path]]:
    """List what a copy of a policy on another machine must contain: its folder and its backbone's,
    in the same relative places.

    Returns the policy's folder within the copy, and every file by its path within the copy. Raises
    RoboAlignError if policy.json or the backbone is missing or broken.
    """
    path = Path(folder).resolve() / "policy.json"
    backbone = _find_backbone(
        _parse(BackboneReference, read_json(path, fix=_FIX), "backbone", path), path
    )
    root = Path(os.path.commonpath([path.parent, backbone]))
    files = [
        file for one in (path.parent, backbone) for file in sorted(one.iterdir()) if file.is_file()
    ]
    return str(path.parent.relative_to(root)), {str(file.relative_to(root)): file for file in files}


def _parse(kind: Any, record: dict[str, Any], name: str, path: Path) -> Any:
    """Parse entry `name` of policy.json as a `kind`. Raises RoboAlignError naming a missing,
    unknown or ill-typed field."""
    if name not in record:
        raise RoboAlignError(f"field {name!r} is missing", where=str(path), fix=_FIX)
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Config) else {}
    for field in fields if isinstance(record[name], dict) else ():
        # A default could silently give a policy that acts differently.
        if field not in record[name]:
            raise RoboAlignError(f"field '{name}.{field}' is missing", where=str(path), fix=_FIX)
    try:
        return TypeAdapter(kind).validate_python(record[name])
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join([name, *(str(part) for part in fault["loc"])])
        raise RoboAlignError(
            f"field {field!r}: {fault['msg']}", where=str(path), fix=_FIX
        ) from None


def _stats(record: dict[str, Any], name: str, dim: int, path: Path) -> ActionStats:
    where = f"{path}, {name}"
    if not isinstance(record.get(name), dict):
        raise RoboAlignError("the statistics are missing", where=where, fix=_FIX)
    stats = ActionStats.from_dict(record[name], where=where)
    if stats.dim != dim:
        raise RoboAlignError(
            f"statistics of {stats.dim} dimensions for a head of {dim}", where=where, fix=_FIX
        )
    return stats


def _find_backbone(reference: BackboneReference, path: Path) -> Path:
    folder = (path.parent / reference.path).resolve()
    if not folder.is_dir():
        raise RoboAlignError(
            f"the backbone {folder} does not exist",
            where=str(path),
            fix="move it there, or set backbone.path (relative to this file's folder)",
        )
    if backbone_hash(folder) != reference.sha256:
        problem = "the backbone is not the one that this head was trained on (sha256 differs)"
        raise RoboAlignError(problem, where=str(folder), fix=_FIX)
    return folder


def _check_weights(path: Path, record: dict[str, Any], described: Path) -> None:
    """Raise RoboAlignError if the head's weights are not those that were written with
    policy.json."""
    check_readable(path, fix=_FIX)
    found = hash_file(path)
    if "head_sha256" not in record:
        fix = f'{_FIX}; or, if you trust the file, add "head_sha256": "{found}"'
        raise RoboAlignError("field 'head_sha256' is missing", where=str(described), fix=fix)
    if record["head_sha256"] != found:
        problem = "the head's weights are not those that were written (sha256 differs)"
        raise RoboAlignError(problem, where=str(path), fix=_FIX)


def _load_weights(head: FlowMatchingHead, path: Path) -> None:
    try:
        weights = load_file(path)
        for name, value in head.state_dict().items():
            if name in weights and weights[name].dtype != value.dtype:
                raise RuntimeError(f"{name} is {weights[name].dtype}, not {value.dtype}")
        head.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:300]
        raise RoboAlignError(
            f"the head's weights cannot be read ({problem})", where=str(path), fix=_FIX
        ) from None
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise RoboAlignError(f"weights {broken[0]!r} are not finite", where=str(path), fix=_FIX)
