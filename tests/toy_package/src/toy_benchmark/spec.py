"""What RoboAlign asks about the benchmark before anything runs. Nothing here needs the simulator."""

from typing import TYPE_CHECKING

from roboalign.core.config import Config
from roboalign.sim.registry import BenchmarkSpec

if TYPE_CHECKING:
    from toy_benchmark.world import Toy

COLORS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200)}
"""Color of the square -> RGB."""


class ToyConfig(Config):
    """The section `collect.toy` of a recipe."""

    image_size: int = 64
    """Width and height of the image, pixels."""
    radius: float = 0.03
    """Distance from the middle of the square that counts as touching it, meters."""


class ToySpec(BenchmarkSpec):
    """`toy`: a hand above a table touches a square. Red and blue align, green measures."""

    title = "Toy squares"
    section = "toy"
    config = ToyConfig
    packages = ("toy-benchmark",)
    notes = ("The toy benchmark has no physics: a point moves above squares drawn with numpy.",)
    default_align = "train"
    default_downstream = "test"

    def task_names(self) -> tuple[str, ...]:
        """One task a color."""
        return tuple(f"toy/touch-{color}" for color in COLORS)

    def task_sets(self) -> dict[str, tuple[str, ...]]:
        """`train`: red and blue. `test`: green."""
        return {"train": ("toy/touch-red", "toy/touch-blue"), "test": ("toy/touch-green",)}

    def cameras(self, settings: ToyConfig) -> tuple[str, ...]:
        """One camera, which looks straight down."""
        return ("top",)

    def image_size(self, settings: ToyConfig) -> int:
        """Width and height of the image, pixels."""
        return settings.image_size

    def make(self, settings: ToyConfig) -> "Toy":
        """The benchmark with its expert."""
        from toy_benchmark.world import Toy

        return Toy(settings)

    demonstrated = make
