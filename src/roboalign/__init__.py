"""RoboAlign: turn an open multimodal LLM into a robot policy (arXiv 2603.21341).

    import roboalign as ra

    folder = ra.run("recipes/quickstart.yaml")
    policy = ra.Policy.load(folder / "seed-0/head/roboalign/policy")

A name is imported when it is first used: `import roboalign` loads neither torch nor NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roboalign.core.errors import RoboAlignError
    from roboalign.episodes.open import open_robot_data as open_episodes
    from roboalign.run.load import load_recipe
    from roboalign.run.recipe import Recipe
    from roboalign.sim.registry import make_benchmark
    from roboalign.vla.policy import Policy

__version__ = "0.1.0"
__all__ = [
    "Policy",
    "Recipe",
    "RoboAlignError",
    "load_recipe",
    "make_benchmark",
    "open_episodes",
    "run",
]

_HOMES = {
    "Policy": ("roboalign.vla.policy", "Policy"),
    "Recipe": ("roboalign.run.recipe", "Recipe"),
    "RoboAlignError": ("roboalign.core.errors", "RoboAlignError"),
    "load_recipe": ("roboalign.run.load", "load_recipe"),
    "make_benchmark": ("roboalign.sim.registry", "make_benchmark"),
    "open_episodes": ("roboalign.episodes.open", "open_robot_data"),
}


def __getattr__(name: str) -> Any:
    if name == "run":  # a package that can be called
        return import_module("roboalign.run")
    if name not in _HOMES:
        available = ", ".join(__all__)
        raise AttributeError(f"module 'roboalign' has no {name!r}. Available: {available}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
