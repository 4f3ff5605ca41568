"""Define the head's policy: a frozen MLLM, a flow-matching head and the statistics that convert its
output to raw actions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Num
from pydantic import PositiveInt
from safetensors.torch import save_file
from torch import Tensor

import roboalign
from roboalign.actions.normalize import ActionStats
from roboalign.actions.relative import Relative
from roboalign.conversations.styles.registry import require_model_style
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, hash_file, write_json
from roboalign.mllm.compiled import compile_layers
from roboalign.mllm.encode import Encoded, Prompt
from roboalign.mllm.hidden import restore_depth, truncate_layers
from roboalign.mllm.load import Mllm, load_mllm
from roboalign.vla.features import View
from roboalign.vla.guidance import Guide, Rest, make_guide
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.policy_folder import (
    POLICY_FIX,
    POLICY_FORMAT,
    RELATIVE_FORMAT,
    BackboneReference,
    check_head_reading,
    check_head_weights,
    find_backbone,
    load_head_weights,
    parse_entry,
    parse_relative,
    parse_stats,
    parse_view,
    read_policy_record,
    refer_to_backbone,
)
from roboalign.vla.policy_input import NoiseKey, ObservationLike, key_digest

HEAD_FILE = "head.safetensors"
COMPILED_MULTIPLE = 64  # tokens; instructions of similar length share compiled code


@dataclass
class HeadPolicy:
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
    counts: Counter[str] = field(default_factory=Counter)
    """Of a head that reads reasonings, over all decisions: `decisions`, `tokens` of reasonings, and
    how many were `closed`."""
    relative: Relative | None = None
    """How the head's actions are counted from the state; None: they are as recorded. What the policy
    returns, and is guided by, is always as recorded."""
    kind: ClassVar[str] = "head"
    guided: ClassVar[bool] = True
    remembers: ClassVar[bool] = False

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that it sees, in order."""
        return self.view.cameras

    @property
    def action_dim(self) -> int:
        """A, the number of dimensions of an action."""
        return self.head.shape.action_dim

    @property
    def state_dim(self) -> int | None:
        """S, the number of dimensions of the proprioception; None if it is not needed."""
        needed = self.state_stats is not None or self.relative is not None
        return self.head.shape.state_dim if needed else None

    def metadata(self) -> dict[str, Any]:
        """Return what a server says of it, besides what it asks for and answers."""
        told = {"kind": self.kind, "sampling_steps": self.sampling_steps}
        reading = self.view.reading
        return told if reading == "direct" else {**told, "reading": reading}

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
        return self.act_and_count(observations, noise_keys, guides=guides)[0]

    def act_and_count(
        self,
        observations: Sequence[ObservationLike],
        noise_keys: Sequence[NoiseKey | None] | None = None,
        *,
        guides: Sequence[Rest | None] | None = None,
    ) -> tuple[
        Float[np.ndarray, "{len(observations)} {self.horizon} {self.action_stats.dim}"],
        list[Mapping[str, int]],
    ]:
        """Return `act_batch`'s chunks, and what each decision adds to `counts`: nothing, unless the
        head reads reasonings."""
        keys = [None] * len(observations) if noise_keys is None else list(noise_keys)
        if len(keys) != len(observations):
            raise RoboAlignError(
                f"{len(observations)} observations but {len(keys)} noise keys", where="noise_keys"
            )
        read, counts = self.read(observations)
        return self._sample(observations, [[key] for key in keys], read, guides)[:, 0], counts

    def answers(
        self, observations: Sequence[ObservationLike], noise_keys: Sequence[NoiseKey], samples: int
    ) -> tuple[
        Float[np.ndarray, "{len(observations)} {samples} {self.horizon} {self.action_stats.dim}"],
        list[Mapping[str, int]],
    ]:
        """Return `samples` chunks for each observation, of as many noises, and what each decision
        counts. The first is `act_batch`'s. The backbone is read once."""
        keys: list[list[NoiseKey | None]] = [
            [key, *((*key, "noise", number) for number in range(1, samples))] for key in noise_keys
        ]
        read, counts = self.read(observations)
        return self._sample(observations, keys, read), counts

    def act_after(
        self,
        observations: Sequence[ObservationLike],
        noise_keys: Sequence[NoiseKey],
        read: Sequence[Encoded],
    ) -> Float[np.ndarray, "{len(observations)} {self.horizon} {self.action_stats.dim}"]:
        """Return `act_batch`'s chunks after other tokens than the policy would read, for example
        with another reasoning."""
        return self._sample(observations, [[key] for key in noise_keys], read)[:, 0]

    def prompts(self, observations: Sequence[ObservationLike]) -> list[Prompt]:
        """Return what the MLLM is shown and asked."""
        return [self.view.prompt(one.images, one.instruction) for one in observations]

    def read(
        self, observations: Sequence[ObservationLike]
    ) -> tuple[Sequence[Prompt | Encoded], list[Mapping[str, int]]]:
        """Return what the text layers read, and what each decision counts."""
        prompts = self.prompts(observations)
        if self.view.reading != "reasoned":
            return prompts, [{}] * len(prompts)
        thoughts = self.view.think(self.mllm, prompts)
        counts: list[Mapping[str, int]] = [one.counts() for one in thoughts]
        for one in counts:
            self.counts.update(one)
        return [one.encoded for one in thoughts], counts

    def _sample(
        self,
        observations: Sequence[ObservationLike],
        keys: Sequence[Sequence[NoiseKey | None]],
        read: Sequence[Prompt | Encoded],
        guides: Sequence[Rest | None] | None = None,
    ) -> Float[np.ndarray, "{len(observations)} samples {self.horizon} {self.action_stats.dim}"]:
        """Return a chunk for each key of each observation; the backbone is read once."""
        samples = len(keys[0])
        noise = torch.stack([self.noise(key) for row in keys for key in row])
        states, mask = self.view.encode(self.mllm, read, multiple=self.multiple)
        state = self.state(observations)
        self.head.eval()
        chunk = self.head.sample(
            states.float().repeat_interleave(samples, dim=0),
            mask.repeat_interleave(samples, dim=0),
            None if state is None else state.repeat_interleave(samples, dim=0),
            noise.to(self.mllm.device),
            steps=self.sampling_steps,
            **self._guide(guides, observations),
        )
        raw = self.raw(chunk.cpu().numpy(), observations)
        return raw.reshape(len(observations), samples, *raw.shape[1:])

    def raw(
        self,
        chunks: Float[np.ndarray, "rows horizon action"],
        observations: Sequence[ObservationLike],
    ) -> Float[np.ndarray, "rows horizon action"]:
        """Return chunks of the head in raw units, as recorded; each observation's are adjacent."""
        raw = self.action_stats.denormalize(chunks)
        if self.relative is None:
            return raw
        each = len(chunks) // len(observations)
        return self.relative.absolute(raw, self._starts(observations).repeat(each, axis=0))

    def normalized(
        self, chunks: Float[np.ndarray, "*batch action"], observation: ObservationLike
    ) -> Float[np.ndarray, "*batch action"]:
        """Return raw chunks of one observation in the units in which the head learns."""
        if self.relative is not None:
            chunks = self.relative.relative(chunks, observation.state)
        return self.action_stats.normalize(chunks)

    def compile(self) -> None:
        """Compile the backbone's layers and the head's sampling in this process; results of `act`
        differ by rounding.

        Compilation happens at the first call for each number of observations, image size and prompt
        length; prompts are padded to multiples of COMPILED_MULTIPLE tokens to limit these. It takes
        minutes on a CPU. Raises RoboAlignError if the head reads reasonings: every token that is
        written is a new length.
        """
        if self.view.reading == "reasoned":
            raise RoboAlignError(
                "a policy that writes a reasoning is not compiled",
                where=str(self.mllm.folder or "policy"),
                fix="load it without `compile`",
            )
        compile_layers(self.mllm.model, dynamic=False)
        self.head.sample = torch.compile(self.head.sample, dynamic=False)  # type: ignore[method-assign]
        self.multiple = COMPILED_MULTIPLE

    def save(self, folder: str | Path) -> None:
        """Write head.safetensors and policy.json, which names the backbone by relative path and
        hash; it is not copied.

        Raises RoboAlignError if the backbone has no folder.
        """
        folder = Path(folder)
        record = {
            "format": POLICY_FORMAT if self.relative is None else RELATIVE_FORMAT,
            "kind": self.kind,
            "backbone": refer_to_backbone(self.mllm, folder),
            "view": self.view.model_dump(),
            "head": self.head.config.model_dump(),
            "shape": self.head.shape.model_dump(),
            "sampling_steps": self.sampling_steps,
            "action_stats": self.action_stats.to_dict(),
            "state_stats": None if self.state_stats is None else self.state_stats.to_dict(),
            "versions": {"roboalign": roboalign.__version__}
            | {n: version(n) for n in ("torch", "transformers")},
        }
        if self.relative is not None:
            record["relative"] = self.relative.model_dump(mode="json")
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            save_file(
                {name: value.contiguous() for name, value in self.head.state_dict().items()},
                temporary / HEAD_FILE,
                _trained_on(self.view),
            )
            record["head_sha256"] = hash_file(temporary / HEAD_FILE)
            write_json(temporary / "policy.json", record)

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "cpu", *, compile: bool = False
    ) -> "HeadPolicy":
        """Read a policy and its backbone, without the backbone's layers above `view.layer` unless
        they write a reasoning.

        The backbone runs in the precision that computed the hidden states of the head's training.
        `compile` calls that method.

        Raises RoboAlignError, naming file and field, if anything is missing, broken or
        inconsistent, or if the head was trained on another backbone.
        """
        folder = Path(folder)
        path = folder / "policy.json"
        record = read_policy_record(folder)
        view = parse_view(record, path)
        shape = parse_entry(HeadShape, record, "shape", path)
        config = parse_entry(HeadConfig, record, "head", path)
        sampling_steps = parse_entry(PositiveInt, record, "sampling_steps", path)
        action_stats = parse_stats(record, "action_stats", shape.action_dim, path)
        state_stats = (
            parse_stats(record, "state_stats", shape.state_dim, path)
            if config.proprioception
            else None
        )
        relative = parse_relative(record, shape.action_dim, shape.state_dim, path)
        reference = parse_entry(BackboneReference, record, "backbone", path)
        backbone = find_backbone(reference, path)
        head = FlowMatchingHead(config, shape)
        check_head_weights(folder / HEAD_FILE, record, path)
        check_head_reading(folder / HEAD_FILE, view, path)
        load_head_weights(head, folder / HEAD_FILE)
        mllm = load_mllm(backbone, dtype=getattr(torch, reference.dtype), device=device)
        if "cut_from" in record:  # exported: its upper layers are not there
            restore_depth(mllm, parse_entry(PositiveInt, record, "cut_from", path))
        text = mllm.model.config.get_text_config()
        if text.hidden_size != shape.vlm_width or text.num_hidden_layers < view.layer:
            problem = (
                f"the head reads layer {view.layer} of width {shape.vlm_width}, the backbone has "
                f"{text.num_hidden_layers} layers of width {text.hidden_size}"
            )
            raise RoboAlignError(problem, where=str(path), fix=POLICY_FIX)
        require_model_style(mllm, view.prompts, where=str(backbone))
        if view.reading != "reasoned":  # a reasoning is written by all layers
            truncate_layers(mllm, view.layer)
        policy = cls(
            mllm,
            head.to(mllm.device).eval(),
            view,
            action_stats,
            state_stats,
            sampling_steps,
            relative=relative,
        )
        if compile:
            policy.compile()
        return policy

    def noise(
        self, key: NoiseKey | None
    ) -> Float[Tensor, "{self.horizon} {self.action_stats.dim}"]:
        """Return the noise that a decision's flow starts from."""
        size = (self.horizon, self.head.shape.action_dim)
        if key is None:
            return torch.randn(size)
        seed = int.from_bytes(key_digest(key), "little", signed=True)
        return torch.randn(size, generator=torch.Generator().manual_seed(seed))

    def _guide(
        self, guides: Sequence[Rest | None] | None, observations: Sequence[ObservationLike]
    ) -> dict[str, Guide]:
        """Return the additional arguments of `sample`; empty if no sample is guided.

        The rest of a chunk is counted from the state of its new observation.
        """
        if guides is None or all(rest is None for rest in guides):
            return {}
        if self.relative is not None:
            guides = [
                rest and (self.relative.relative(rest[0], state), rest[1])
                for rest, state in zip(guides, self._starts(observations), strict=True)
            ]
        device = self.mllm.device
        return {"guide": make_guide(guides, self.action_stats, self.horizon, device)}

    def _starts(
        self, observations: Sequence[ObservationLike]
    ) -> Num[np.ndarray, "{len(observations)} {self.head.shape.state_dim}"]:
        """Return the states from which relative actions are counted."""
        wanted = (self.head.shape.state_dim,)
        for one in observations:
            if one.state.shape != wanted:
                raise RoboAlignError(
                    f"the state has shape {list(one.state.shape)}, its actions are counted from "
                    f"{list(wanted)}",
                    where="observation.state",
                    fix="send the state that the policy was trained with",
                )
        return np.stack([one.state for one in observations])

    def state(
        self, observations: Sequence[ObservationLike]
    ) -> Float[Tensor, "{len(observations)} {self.state_stats.dim}"] | None:
        """Return the normalized proprioception, None if the head reads none."""
        if self.state_stats is None:
            return None
        state = np.stack([observation.state for observation in observations])
        return torch.from_numpy(self.state_stats.normalize(state)).to(self.mllm.device)


def _trained_on(view: View) -> dict[str, str] | None:
    """Return what the weights' file says of the view; none says that the head reads the direct
    question."""
    return None if view.reading == "direct" else {"reading": view.reading}
