"""The steps around the policy: name, batch, device. It normalizes by itself."""

from typing import Any

from lerobot.processor import PolicyProcessorPipeline, make_default_pre_post_processors

from lerobot_policy_roboalign.configuration_roboalign import RoboalignConfig


def make_roboalign_pre_post_processors(
    config: RoboalignConfig, dataset_stats: Any = None, **_: Any
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Return lerobot's default steps. `RoboalignConfig` says identity for every normalization,
    whatever the statistics."""
    return make_default_pre_post_processors(config, None)
