"""Reward a sampled action answer, for verl and EasyR1: r = (format + action) / 2, in [0, 1].

This file needs only the standard library and, next to it, `reward.json` and `reply.py`, the grammar
of replies. verl is given `reward.py` and `compute_score`, EasyR1 `reward.py:compute_scores`.

Both pass text. Action tokens are found in it by their names in the saved tokenizer, which splits
any text at them, so an answer is read here as its token ids would be. Names that the tokenizer
lacks count as text.
"""

import importlib.util
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any


def _grammar() -> Any:
    """Load `reply.py`: these trainers load this file by its path, so it cannot import its neighbor."""
    path = Path(__file__).with_name("reply.py")
    spec = importlib.util.spec_from_file_location("roboalign_reply", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_judge_block = _grammar().judge_block
SETTINGS: dict[str, Any] = json.loads(Path(__file__).with_name("reward.json").read_text())
"""preset, n_fast, end_texts, special_texts, and for the preset `decoded` also tau, horizon,
action_dim, scale, min_token and fast_bytes (hexadecimal, one per FAST token)."""

REWARD_NAME = "roboalign"  # EasyR1 reads this and the next one
REWARD_TYPE = "batch"

_NAME = re.compile(r"<ACTION_START>|<ACTION_END>|<FAST_(?:0|[1-9]\d*)>")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Return the scores of one answer, with verl's signature. `ground_truth` holds the target's
    FAST ids, for example "12 3 7"; verl trains on `score`."""
    return score(solution_str, [int(i) for i in ground_truth.split()])


def compute_scores(reward_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the scores of a batch, with EasyR1's signature; EasyR1 trains on `overall`."""
    results = []
    for one in reward_inputs:
        scored = score(one["response"], [int(i) for i in one["ground_truth"].split()])
        names = {
            "overall": "score",
            "format": "format",
            "accuracy": "action",
            "prefix": "prefix",
            "length": "length",
        }
        results.append({theirs: scored[ours] for theirs, ours in names.items()})
    return results


def score(text: str, target: list[int]) -> dict[str, Any]:
    """Return score, format, action, prefix (all in [0, 1]) and length (FAST tokens in the block) of
    one answer.

    Raises ValueError if `target` is empty, or if the preset `decoded` cannot decode it.
    """
    if not target:
        raise ValueError("the target is empty")
    end = next((end for end in SETTINGS["end_texts"] if text.endswith(end)), "")
    well_formed, fast = parse(text.removesuffix(end))
    matched = 0
    for ours, theirs in zip(fast, target):
        if ours != theirs:
            break
        matched += 1
    prefix = matched / len(target)
    action = (
        prefix if SETTINGS["preset"] == "paper" else _decoded(well_formed, fast, target, prefix)
    )
    return {
        "score": (well_formed + action) / 2,
        "format": float(well_formed),
        "action": action,
        "prefix": prefix,
        "length": len(fast),
    }


def parse(text: str) -> tuple[bool, list[int]]:
    """Return whether the answer is well formed, and the FAST ids of its only action block inside
    <answer> ([] without one)."""
    found = [match for match in _NAME.finditer(text) if _known(match[0])]
    if len(found) < 3 or [match[0] for match in found].count("<ACTION_START>") != 1:
        return False, []
    start, *fast, end = found
    if (
        start[0] != "<ACTION_START>"
        or end[0] != "<ACTION_END>"
        or any("ACTION" in match[0] for match in fast)
    ):
        return False, []
    if any(left.end() != right.start() for left, right in itertools.pairwise(found)):
        return False, []  # there is text inside the block
    before, after = text[: start.start()], text[end.end() :]
    special = any(text in before for text in SETTINGS["special_texts"])
    counts, reason = _judge_block(before, after, "tagged", special=special)
    return reason == "ok", [int(match[0][6:-1]) for match in fast] if counts else []


def _known(name: str) -> bool:
    return "ACTION" in name or int(name[6:-1]) < SETTINGS["n_fast"]


def _decoded(well_formed: bool, fast: list[int], target: list[int], prefix: float) -> float:
    """Return the mean of the prefix accuracy and exp(-L1 / tau), L1 between the chunks; 0 if there
    is no chunk."""
    goal = _chunk(target)
    if goal is None:
        raise ValueError(f"a target of {len(target)} tokens decodes to no chunk")
    chunk = _chunk(fast) if well_formed else None
    if chunk is None:
        return 0.0
    l1 = sum(abs(a - b) for a, b in zip(chunk, goal)) / len(goal)
    return (prefix + math.exp(-l1 / SETTINGS["tau"])) / 2


def _chunk(fast: list[int]) -> list[float] | None:
    """Return horizon x action_dim normalized actions, flat, by FAST's inverse DCT; None if the ids
    decode to another number."""
    horizon, dims = SETTINGS["horizon"], SETTINGS["action_dim"]
    try:
        spelled = b"".join(bytes.fromhex(SETTINGS["fast_bytes"][i]) for i in fast).decode()
    except UnicodeDecodeError:
        return None
    if len(spelled) != horizon * dims or "\ufffd" in spelled:
        return None
    values = [(ord(character) + SETTINGS["min_token"]) / SETTINGS["scale"] for character in spelled]
    waves = [
        [
            math.sqrt((2 if k else 1) / horizon) * math.cos(math.pi * (t + 0.5) * k / horizon)
            for k in range(horizon)
        ]
        for t in range(horizon)
    ]
    return [
        sum(wave[k] * values[k * dims + d] for k in range(horizon))
        for wave in waves
        for d in range(dims)
    ]
