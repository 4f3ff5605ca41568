"""Checks the annotated shapes of arrays at every call that a test makes, of what these modules define.

`install` hooks their import, so it must come before it. Annotations that name no axes are left to mypy: tests put
stand-ins in many places. A process that a test starts is not hooked.
"""

from typing import Any, get_args

import jaxtyping
from beartype import beartype

MODULES = [
    "roboalign.actions.axes",
    "roboalign.actions.fast",
    "roboalign.actions.hold",
    "roboalign.actions.normalize",
    "roboalign.actions.relative",
    "roboalign.actions.spaces",
    "roboalign.align.answers",
    "roboalign.align.budget",
    "roboalign.align.dataset",
    "roboalign.align.engines.vllm.chat",
    "roboalign.align.grpo.logprobs",
    "roboalign.align.grpo.loss",
    "roboalign.align.grpo.rollout",
    "roboalign.align.grpo.sums",
    "roboalign.align.packing",
    "roboalign.align.rewards.actions",
    "roboalign.align.rewards.registry",
    "roboalign.align.sft",
    "roboalign.align.vision",
    "roboalign.online.decisions",
    "roboalign.online.flow_sde",
    "roboalign.online.improve",
    "roboalign.online.groups",
    "roboalign.online.loss",
    "roboalign.online.token_learner",
    "roboalign.online.train",
    "roboalign.vla.augment",
    "roboalign.vla.token_answer",
    "roboalign.vla.command_memory",
    "roboalign.vla.dit",
    "roboalign.vla.features",
    "roboalign.vla.frames",
    "roboalign.vla.guidance",
    "roboalign.vla.head",
    "roboalign.vla.in_step",
    "roboalign.vla.head_policy",
    "roboalign.vla.policy",
    "roboalign.vla.policy_input",
    "roboalign.vla.store",
    "roboalign.vla.token_policy",
]


jaxtyped = jaxtyping.jaxtyped


def names_axes(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(names_axes, get_args(hint)))


def typechecked(function: Any) -> Any:
    """jaxtyping gives a function of its own, made for the check, with the annotations of the checked one."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if names_axes(hint)}
    return beartype(function)


def jaxtyped_where_axes_are_named(**settings: Any) -> Any:
    """`jaxtyping.jaxtyped` for classes and for functions that name axes; others stay as they are.

    The import hook decorates every function, which made the import take seconds.
    """

    def decorate(made: Any) -> Any:
        hints = [] if isinstance(made, type) else made.__annotations__.values()
        checked = isinstance(made, type) or any(isinstance(h, str) or names_axes(h) for h in hints)
        return jaxtyped(**settings)(made) if checked else made

    return decorate


def install() -> None:
    jaxtyping.jaxtyped = jaxtyped_where_axes_are_named
    jaxtyping.install_import_hook(MODULES, "shape_checks.typechecked")
