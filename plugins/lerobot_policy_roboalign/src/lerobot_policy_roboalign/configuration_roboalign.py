"""The settings of a RoboAlign policy as lerobot knows them; config.json of its folder."""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig


@dataclass
class RoboalignConfig(PreTrainedConfig):
    """What lerobot must know; all that the policy computes with is in its policy.json."""

    chunk_size: int = 1
    """Actions of a chunk."""
    n_action_steps: int = 1
    """Actions of a chunk that are executed before the policy is asked again."""
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(
            ("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY
        )
    )
    """The policy normalizes by itself: lerobot must not."""
    push_to_hub: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps is {self.n_action_steps}; a chunk has {self.chunk_size} actions"
            )

    def validate_features(self) -> None:
        """Raise ValueError if the policy is asked to see nothing or to do nothing."""
        if not self.image_features or self.action_feature is None:
            raise ValueError(
                "config.json names no camera or no action: write it again with "
                "`python -m lerobot_policy_roboalign FOLDER`"
            )

    def get_optimizer_preset(self) -> None:
        """Raise NotImplementedError: RoboAlign trains its policies itself."""
        raise NotImplementedError("train it with `roboalign run`")

    def get_scheduler_preset(self) -> None:
        """Return that there is none."""
        return None

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None


PreTrainedConfig.register_subclass("roboalign")(RoboalignConfig)
