"""Write a commented recipe for a user's own data: what `roboalign init` found, as settings."""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from roboalign.actions.spaces import ActionSpace

LARGE_MODEL = 1e9
"""Parameters from which LoRA and bfloat16 are written: full fine-tuning of more needs several
GPUs."""
CHUNK_SECONDS = 0.8
"""Length of an action chunk; those of GR00T and openpi lie between 0.5 and 1.6 s."""
FEWEST_SAMPLES, MOST_SAMPLES = 2_000, 100_000
"""Action samples of the mixture: as many as training frames, within these bounds."""


@dataclass(frozen=True)
class StarterFacts:
    """What is known of the data and the backbone."""

    name: str
    out: str
    """The recipe's file."""
    data: str
    format: str
    space: ActionSpace
    space_name: str
    """The known name of the space; "" if it is written out."""
    cameras: dict[str, str]
    """Name in the recipe -> name in the data set."""
    left_out: dict[str, str]
    """Camera of the data set -> why it is not used."""
    read: dict[str, Any]
    instruction: str
    """Given for episodes that record none; "" if all do."""
    episodes: int
    frames: int
    fps: float
    state_dim: int
    evidence: list[str]
    attention: list[str]
    backbone: str
    parameters: float
    layer: int
    layers: int

    @property
    def horizon(self) -> int:
        """Return the steps of a chunk."""
        return starter_horizon(self.fps)

    @property
    def large(self) -> bool:
        return self.parameters >= LARGE_MODEL


def starter_horizon(fps: float) -> int:
    """Return the steps of a chunk: about CHUNK_SECONDS, a multiple of 4."""
    return max(4, round(fps * CHUNK_SECONDS / 4) * 4)


def starter_name(path: str) -> str:
    """Return a name that a recipe may have: `~/data/Pick Cube` -> `pick_cube`."""
    last = path.rstrip("/").rsplit("/", 1)[-1].split("@")[0]
    name = re.sub(r"[^a-z0-9_.-]+", "_", last.lower()).strip("_.-")
    return name or "own"


def starter_recipe(facts: StarterFacts) -> str:
    """Return the recipe as YAML with comments; `load_recipe` accepts it."""
    parts = [_head(facts), _demos(facts), _alignment(facts), _policy(facts)]
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(facts: StarterFacts) -> list[str]:
    chunk = f"{facts.horizon / facts.fps:.2g} s"
    return [
        f"# Written by `roboalign init` from {facts.data}. Every key: docs/reference/recipe.md.",
        f"#   roboalign plan {facts.out} --gpus 1xL40S   # does it fit, how long",
        f"#   roboalign run {facts.out}                  # aligned MLLM, policy, open-loop page",
        f"#   roboalign serve runs/{facts.name}                # the robot talks to it",
        f"name: {facts.name}",
        "# No simulator of this robot: policies are compared with held-out episodes, in open loop.",
        "measure: offline",
        "# base and sft show what alignment adds; leave them out to train the policy alone.",
        "arms: [base, sft, roboalign]",
        *([] if not facts.large else ["hardware: {dtype: bfloat16}"]),
        f"# A chunk is {facts.horizon} actions, {chunk} at {facts.fps:g} a second.",
        f"tokenizer: {_flow(_tokenizer(facts))}",
    ]


def _tokenizer(facts: StarterFacts) -> dict[str, Any]:
    scale, size = (10.0, 1024) if facts.large else (2.0, 128)
    return {"horizon": facts.horizon, "scale": scale, "vocab_size": size}


def _demos(facts: StarterFacts) -> list[str]:
    lines = ["demos:", "  sets:", f"    - name: {facts.name}", f"      robot: {_flow(facts.data)}"]
    lines += _comment(f"{facts.episodes} episodes, {facts.frames:,} frames, {facts.format}.", 6)
    lines += [f"      format: {facts.format}"]
    if facts.read:
        lines += [f"      read: {_flow(facts.read)}"]
    lines += _comment(
        "What the actions mean, as said with --action-space. " + " ".join(facts.evidence), 6
    )
    space = facts.space_name or facts.space.model_dump(mode="json")
    lines += [f"      space: {_flow(space)}"]
    if facts.left_out:
        said = "; ".join(f"{camera}: {why}" for camera, why in facts.left_out.items())
        lines += _comment(f"Cameras that are not used: {said}.", 6)
    lines += [f"      cameras: {_flow(facts.cameras)}   # name here -> name in the data set"]
    if facts.instruction:
        lines += [f"      instruction: {_flow(facts.instruction)}   # of episodes that record none"]
    lines += [
        "      # episodes: ['*', '!*/episode-000007*']   # patterns of ids; ! leaves out",
        "      # idle: 0.005   # leave out frames in which nothing moves",
    ]
    for sentence in facts.attention:
        lines += _comment(f"Look at this: {sentence}", 6)
    return lines


def _alignment(facts: StarterFacts) -> list[str]:
    camera = next(iter(facts.cameras))
    count = min(max(facts.frames, FEWEST_SAMPLES), MOST_SAMPLES)
    mix = {
        "camera": camera,
        "conversations": count,
        "rl_share": 0.0099,
        "heldout_episode_share": 0.1,
        "heldout_actions": 200,
    }
    tuned: dict[str, Any] = {"freeze_vision": True}
    if facts.large:
        tuned |= {"lora": {"rank": 64, "alpha": 128}, "bf16": True, "gradient_checkpointing": True}
    rate_sft, rate_rl = (2.0e-4, 1.0e-5) if facts.large else (1.0e-3, 3.0e-4)
    micro = 4 if facts.large else 16
    sft = {
        "learning_rate": rate_sft,
        "batch_size": 32 if facts.large else 16,
        "micro_batch_size": micro,
    }
    rl = {
        "learning_rate": rate_rl,
        "prompts_per_rollout": 16,
        "prompts_per_update": 16,
        "micro_batch_size": 1 if facts.large else 16,
        "samples": 8,
        "updates": 40,
        "reward": "decoded",
        # A chunk of many dimensions is many tokens: of 44 joints 101 were seen, with this tokenizer.
        "max_new_tokens": max(256, 12 * facts.space.dim)
        if facts.large
        else max(72, 4 * facts.space.dim),
    }
    start = {"action_start": "labels"} if facts.backbone == "builtin" else {}
    backbone = {"source": facts.backbone, "layer": facts.layer, **start}
    if facts.large:
        backbone |= {"final_norm": True, "layer_dtype": "bfloat16"}
    return [
        "# The MLLM is aligned on action samples: a frame, the instruction, and the chunk as tokens.",
        "# A tenth of the episodes is held out of alignment and head alike.",
        f"mix: {_flow(mix)}",
        f"# The head reads layer {facts.layer} of {facts.layers}.",
        f"backbone: {_flow(backbone)}",
        f"sft: {_flow(sft | tuned)}",
        f"rl: {_flow(rl | tuned)}",
        f"tokens: {_flow({'max_actions': 200, 'max_new_tokens': rl['max_new_tokens']})}",
    ]


def _policy(facts: StarterFacts) -> list[str]:
    seen = facts.state_dim > 0
    head = {"preset": "gr00t-n1.5" if facts.large else "tiny", "proprioception": seen}
    training: dict[str, Any] = {"steps": 1_000, "batch_size": 16, "draws": 2, "eval_every": 250}
    if facts.large:
        training = {
            "steps": 20_000,
            "batch_size": 32,
            "draws": 1,
            "learning_rate": 1.0e-4,
            "precision": "bfloat16",
        }
    state = f"the state ({facts.state_dim} numbers)" if seen else "no state: the data set has none"
    return [
        f"# The head sees the cameras and {state}.",
        f"head: {_flow(head)}",
        f"head_training: {_flow(training)}",
    ]


def _flow(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**9)
    return text.strip().removesuffix("\n...").strip()


def _comment(text: str, indent: int) -> Iterable[str]:
    """Return the text as comment lines of at most 110 columns."""
    mark = " " * indent + "# "
    words = " ".join(text.split())
    return textwrap.wrap(words, 110, initial_indent=mark, subsequent_indent=mark) if words else []
