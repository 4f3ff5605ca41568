"""Write a policy as one folder that needs nothing else: no run, no other model, no code.

policy.json            head, view, statistics, and what the policy was trained on
head.safetensors
backbone/              the MLLM up to the layer that the head reads, weights in bfloat16
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, check_output, read_json, write_json
from roboalign.mllm.hidden import restore_depth
from roboalign.mllm.load import Mllm, save_mllm
from roboalign.vla.features import View, backbone_hash
from roboalign.vla.head_policy import HEAD_FILE, HeadPolicy
from roboalign.vla.policy import Policy

BACKBONE = "backbone"
MOST_INSTRUCTIONS = 100
SPLITS_AND_SETS = ("episodes", "content", "heldout", "sets")
"""Facts of a run that a policy keeps only as `trained`."""


def export_policy(
    folder: str | Path, out: str | Path, facts: Mapping[str, Any] | None = None
) -> int:
    """Write the policy in `folder` to `out`; return the bytes written.

    The layers above the head's are left out and the weights are rounded to bfloat16; the policy
    computes in the precision that it was trained with. For a head that reads reasonings the whole
    backbone is written, as it is. `facts` are those of
    `serve.describe.policy_facts`. An earlier export at `out` is replaced. Raises RoboAlignError if
    the policy is damaged or has no head, or `out` holds other files.
    """
    source, out = Path(folder), Path(out)
    check_output(out, sources=[source], marks=["policy.json"])
    policy = Policy.load(source)
    if not isinstance(policy, HeadPolicy):
        raise RoboAlignError(
            "its actions are the model's own tokens, so there is no head to export",
            where=str(source),
            fix="export an arm with a head, or copy the model's folder and the policy's",
        )
    record = read_json(source / "policy.json")
    depth = policy.mllm.model.config.get_text_config().num_hidden_layers
    with atomic_path(out) as temporary:
        temporary.mkdir()
        if policy.view.reading == "reasoned":
            # All layers write the reasoning, and rounded weights would write another one.
            save_mllm(policy.mllm, temporary / BACKBONE)
        else:
            cut = _cut(policy.mllm, policy.view.layer)
            save_mllm(cut, temporary / BACKBONE, dtype=torch.bfloat16)
            record["cut_from"] = record.get("cut_from", depth)
        (temporary / HEAD_FILE).write_bytes((source / HEAD_FILE).read_bytes())
        reference = {**record["backbone"], "path": BACKBONE}
        record["backbone"] = reference | {"sha256": backbone_hash(temporary / BACKBONE)}
        if facts is not None:
            record["facts"] = _told(facts, policy.view)
        write_json(temporary / "policy.json", record)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _cut(mllm: Mllm, layer: int) -> Mllm:
    """Return the MLLM, whose upper layers are dropped already, with a configuration that says so."""
    config = copy.deepcopy(mllm.model.config)
    mllm.model.config = config
    restore_depth(mllm, layer)
    return mllm


def _told(facts: Mapping[str, Any], view: View) -> dict[str, Any]:
    """Return the facts that a policy keeps: of the episodes only which were trained on, by
    content."""
    kept = {name: value for name, value in facts.items() if name not in SPLITS_AND_SETS}
    instructions = list(facts.get("instructions", ()))[:MOST_INSTRUCTIONS]
    if instructions:
        kept["instructions"] = instructions
        kept["prompt"] = view.question(instructions[0])
    content: Mapping[str, str] = facts.get("content", {})
    heldout = set(facts.get("heldout", ()))
    kept["trained"] = facts.get("trained") or sorted(
        {digest for name, digest in content.items() if name not in heldout}
    )
    return kept
