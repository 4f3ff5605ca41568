"""The recipe's section on states that the SFT policy visits, which the `-visited` arms learn from."""

from pydantic import Field

from roboalign.conversations.prompts import Mode
from roboalign.core.config import Seed
from roboalign.sim.rollout import RolloutConfig


class VisitedConfig(RolloutConfig):
    """How the SFT model drives the alignment tasks by its own action tokens; the scripted expert
    labels what it saw."""

    replan_every: int = Field(4, ge=1)
    """Actions of a chunk that are executed before the policy sees the next observation."""
    max_steps: int = Field(200, ge=1, le=100_000)
    """Steps after which an unsolved episode ends."""
    mode: Mode = "think"
    """How it is asked to act: `think` reasons first, as RL does."""
    episodes_per_task: int = Field(8, ge=1)
    """Training episodes of each alignment task."""
    heldout_per_task: int = Field(2, ge=0)
    """Further episodes of each task, for measuring every arm on visited states."""
    labels_per_episode: int = Field(4, ge=1)
    """Decisions of an episode that are labelled, drawn at random."""
    first_seed: Seed = 500_000
    """Seed of the first episode of each task. It must not be a demonstration's or a measured one."""
    demonstrations: bool = False
    """Whether the RL subset is added to the visited states."""
