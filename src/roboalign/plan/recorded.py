"""Read from a recipe's recorded demonstrations what a plan would otherwise assume of them."""

from roboalign.plan.model import Assumptions
from roboalign.run.demos import DemosPart, OwnDemonstrations
from roboalign.run.recipe import Recipe


def with_recorded(assumed: Assumptions, recipe: Recipe) -> Assumptions:
    """Return the assumptions with what the recipe's own data sets say: episodes, steps, dimensions
    and the size of an image.

    What was set with --assume stays. The data sets are opened and their tables read, no picture is
    decoded. Raises RoboAlignError if one cannot be read.
    """
    facts: dict[str, float] = {}
    if recipe.demos.of("downstream"):
        own = _read(recipe, "downstream")
        episodes = own.episodes
        facts |= {
            "episodes": len(episodes),
            "episode_steps": sum(map(len, episodes)) / len(episodes),
            "action_dim": own.space.dim,
            "state_dim": max(1, episodes[0].state.shape[1]),
        }
    if recipe.demos.of("align") and recipe.mixture is None:
        camera = _read(recipe, "align").episodes[0].cameras[recipe.mix.camera]
        facts |= {"image_height": camera.height, "image_width": camera.width}
    unsaid = {name: v for name, v in facts.items() if name not in assumed.model_fields_set}
    return assumed.model_copy(update=unsaid)


def _read(recipe: Recipe, part: DemosPart) -> OwnDemonstrations:
    mix = recipe.mix
    return OwnDemonstrations(recipe.demos, part, mix.heldout_episode_share, mix.seed)
