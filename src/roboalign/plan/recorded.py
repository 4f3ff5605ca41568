"""Read from a recipe's recorded demonstrations what a plan would otherwise assume of them."""

from dataclasses import dataclass

from roboalign.plan.model import Assumptions
from roboalign.run.demos import DemosPart, OwnDemonstrations
from roboalign.run.recipe import Recipe


@dataclass(frozen=True)
class Recorded:
    """What a recipe's own data sets say."""

    facts: dict[str, float]
    """Assumption -> its value: episodes, steps, dimensions and the size of an image."""
    sentences: list[str]
    """What a user must know of how they are read."""

    def replace_in(self, assumed: Assumptions) -> Assumptions:
        """Return the assumptions with these facts; what was set with --assume stays."""
        unsaid = {n: v for n, v in self.facts.items() if n not in assumed.model_fields_set}
        return assumed.model_copy(update=unsaid)


def read_recorded(recipe: Recipe) -> Recorded:
    """Open a recipe's own data sets and read their tables; no picture is decoded.

    Raises RoboAlignError if one cannot be read.
    """
    facts: dict[str, float] = {}
    sentences: dict[str, None] = {}
    if recipe.demos.of("downstream"):
        own = _read(recipe, "downstream")
        sentences |= dict.fromkeys(line for one in own.sets for line in one.sentences())
        episodes = own.episodes
        facts |= {
            "episodes": len(episodes),
            "episode_steps": sum(map(len, episodes)) / len(episodes),
            "action_dim": own.space.dim,
            "state_dim": max(1, episodes[0].state.shape[1]),
        }
    if recipe.demos.of("align") and recipe.mixture is None:
        own = _read(recipe, "align")
        sentences |= dict.fromkeys(line for one in own.sets for line in one.sentences())
        camera = own.episodes[0].cameras[recipe.mix.camera]
        facts |= {"image_height": camera.height, "image_width": camera.width}
    return Recorded(facts, list(sentences))


def _read(recipe: Recipe, part: DemosPart) -> OwnDemonstrations:
    mix = recipe.mix
    return OwnDemonstrations(recipe.demos, part, mix.heldout_episode_share, mix.seed)
