"""Find rewards of sampled action answers by name: built in, from an installed package, or
`path/to/file.py:function`.

An external reward is a function of one `SampledAnswer` that returns a finite number. GRPO compares
the numbers within a group of answers to one prompt, so only their differences count. A package adds
a reward by an entry point in the group `roboalign.rewards`. A file is run as Python when a stage
uses it, and its content is part of the stage's settings.
"""

import functools
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.actions.fast import Chunk, DecodeFailure
from roboalign.align.rewards.actions import (
    ACTION_REWARDS,
    Reward,
    action_reward,
    paper_reward,
)
from roboalign.align.rewards.answers import ANSWER_REWARDS as IN_WORDS
from roboalign.conversations.blocks import Parsed
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file
from roboalign.core.plugins import find_plugin, installed, load_plugin, package_of

REWARD_ENTRY_POINTS = "roboalign.rewards"
_WHERE = "rl.reward"


@dataclass(frozen=True)
class SampledAnswer:
    """One response to an action question, as the argument of an external reward."""

    text: str
    """The response with its special tokens, without the end token."""
    well_formed: bool
    """Whether it is `<think>reasoning</think><answer>action block</answer>`."""
    action_ids: tuple[int, ...]
    """FAST ids of its action block; empty without one."""
    target_ids: tuple[int, ...]
    """FAST ids of the recorded action chunk."""
    chunk: Chunk | None
    """The chunk that `action_ids` decode to; None if they decode to no chunk."""
    target_chunk: Chunk
    """The chunk that `target_ids` decode to."""


def reward_names() -> tuple[str, ...]:
    """Return the names of all rewards, without importing any."""
    return tuple(
        dict.fromkeys((*ACTION_REWARDS, *IN_WORDS, *sorted(installed(REWARD_ENTRY_POINTS))))
    )


def check_reward_name(name: str) -> str:
    """Return the name. Raises ValueError if it is neither a known name nor
    `path/to/file.py:function`."""
    if name not in reward_names() and _file_of(name) is None:
        raise ValueError(
            f"reward `{name}` not found. Available: {', '.join(reward_names())}, or "
            "path/to/file.py:function"
        )
    return name


def reward_content(name: str) -> dict[str, str]:
    """Return what a stage's settings contain of a reward besides its name: the content hash of its
    file.

    Raises RoboAlignError if the reward cannot be loaded, so that a run stops before it starts.
    """
    if name in ACTION_REWARDS or name in IN_WORDS:
        return {}
    function = _outside(name)
    try:
        source = inspect.getsourcefile(function)
    except TypeError:
        source = None
    return {"reward_file": hash_file(Path(source))} if source else {}


def score_action(
    name: str,
    text: str,
    parsed: Parsed,
    target: Sequence[int],
    chunk: Chunk | DecodeFailure | None,
    target_chunk: Chunk,
) -> Reward:
    """Return the reward `name` of one parsed response.

    Built-in rewards are functions of `rewards.actions`. The number of an external reward becomes
    `total` and `action`. Raises RoboAlignError if the reward is not found, raises, or returns
    anything but a finite number.
    """
    if name in ACTION_REWARDS:
        return ACTION_REWARDS[name](parsed, target, chunk, target_chunk)
    answer = SampledAnswer(
        text,
        parsed.well_formed,
        tuple(parsed.action_ids or ()),
        tuple(target),
        chunk if isinstance(chunk, np.ndarray) else None,
        target_chunk,
    )
    value = _called(name, _outside(name), answer)
    measured = paper_reward(parsed, target, chunk, target_chunk)
    return action_reward(measured, total=value)


def _called(name: str, function: Callable[[SampledAnswer], Any], answer: SampledAnswer) -> float:
    try:
        value = function(answer)
    except Exception as error:  # the user's own code
        raise RoboAlignError(
            f"the reward raised {type(error).__name__}: {error}", where=name, fix="correct it"
        ) from error
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.integer | np.floating)
        or not math.isfinite(value)
    ):
        raise RoboAlignError(
            f"the reward returned {value!r}, not a finite number", where=name, fix="correct it"
        )
    return float(value)


@functools.cache
def _outside(name: str) -> Callable[[SampledAnswer], Any]:
    """Return the function of a package or a file, which takes one argument."""
    file = _file_of(name)
    if file is None:
        if (point := find_plugin(REWARD_ENTRY_POINTS, name)) is None:
            raise RoboAlignError(
                f"reward `{name}` not found. Available: {', '.join(reward_names())}", where=_WHERE
            )
        return _one_argument(load_plugin(point), package_of(point))
    path, attribute = file
    if not path.is_file():
        raise RoboAlignError(
            f"the file {path} does not exist", where=_WHERE, fix="give path/to/file.py:function"
        )
    module = _run_file(path)
    if not hasattr(module, attribute):
        raise RoboAlignError(
            f"{path} has no function `{attribute}`",
            where=_WHERE,
            fix="give path/to/file.py:function",
        )
    return _one_argument(getattr(module, attribute), name)


def _file_of(name: str) -> tuple[Path, str] | None:
    path, colon, attribute = name.rpartition(":")
    return (Path(path), attribute) if colon and path.endswith(".py") and attribute else None


def _run_file(path: Path) -> Any:
    key = f"roboalign_reward_{hash_file(path)[:16]}"
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses in the file look up their module there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code
        raise RoboAlignError(
            f"running it raised {type(error).__name__}: {error}", where=str(path), fix="correct it"
        ) from error
    return module


def _one_argument(function: Any, where: str) -> Callable[[SampledAnswer], Any]:
    """Return the function. Raises RoboAlignError if it cannot be called with one argument."""
    try:
        inspect.signature(function).bind(object())
    except (TypeError, ValueError) as error:
        raise RoboAlignError(
            f"the reward takes one argument, a SampledAnswer ({error})",
            where=where,
            fix="write `def reward(answer): ...` that returns a number",
        ) from None
    return function  # type: ignore[no-any-return]
