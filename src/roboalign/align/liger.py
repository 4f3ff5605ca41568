"""Liger's kernels under SFT (`liger: true`): whether they go with a model, and what its release lacks for ours."""

from typing import Any

from transformers.utils import is_liger_kernel_available

from roboalign.core.errors import RoboAlignError

KERNELS = {"fused_linear_cross_entropy": False, "cross_entropy": False}
"""What Liger is asked to leave as it is; the rest is its choice for the class of model."""
GONE = ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3VLMoe")


def check_liger(model: Any) -> None:
    """Raises RoboAlignError where Liger is not installed or has no kernels for this class of model.

    Liger 0.8.5 imports output classes that transformers has done away with, for its fused loss alone, which is off
    here: these become the common one.
    """
    if not is_liger_kernel_available():
        raise RoboAlignError(
            "liger-kernel is not installed",
            where="sft.liger",
            fix="install requirements-liger.lock, or set sft.compile instead",
        )
    from liger_kernel.transformers.model import output_classes
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if (kind := model.config.model_type) not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise RoboAlignError(
            f"Liger has no kernels for models of type {kind}",
            where="sft.liger",
            fix="set liger: false; sft.compile works for every model",
        )
    for name in (f"Liger{prefix}CausalLMOutputWithPast" for prefix in GONE):
        if not hasattr(output_classes, name):
            setattr(output_classes, name, output_classes.LigerCausalLMOutputWithPast)
