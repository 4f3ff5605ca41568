"""Find the benchmarks that a recipe can name: those of this package and those of installed
packages.

A package adds one by an entry point in the group `roboalign.benchmarks`. The entry point's name is
what recipes write, and its value is a subclass of `BenchmarkSpec`. Nothing of a simulator is
imported before its benchmark is used.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.plugins import find_plugin, installed, load_plugin, package_of
from roboalign.sim.base import Benchmark, DemonstratedBenchmark
from roboalign.sim.rollout import RolloutConfig

BENCHMARK_ENTRY_POINTS = "roboalign.benchmarks"
FIRST_EVALUATION_SEED = 1_000_000
"""By default evaluation uses this seed and those above, demonstrations those below."""
_ENDLESS = 2**31
_BUILT_IN = {
    "metaworld": "roboalign.sim.metaworld.spec:MetaWorldSpec",
    "libero": "roboalign.sim.libero.spec:WholeLiberoSpec",
    **{
        f"libero_{suite}": "roboalign.sim.libero.spec:LiberoSpec"
        for suite in ("spatial", "object", "goal", "10", "90")
    },
    **{
        f"libero_{suite}_{perturbation}": "roboalign.sim.libero.spec:PerturbedLiberoSpec"
        for suite in ("spatial", "object", "goal", "10")
        for perturbation in ("swap", "object", "lan", "task")
    },
    "calvin": "roboalign.sim.calvin.spec:CalvinSpec",
}


class BenchmarkSpec(ABC):
    """Describe a benchmark to the rest of the program. `name` is its name in a recipe.

    `settings` is an instance of `config`, read from the section `section` below `collect` in the
    recipe.
    """

    title: ClassVar[str]
    """The benchmark in words, for messages and reports."""
    section: ClassVar[str]
    """Key of its settings below `collect`; benchmarks of one family may share it."""
    config: ClassVar[type[Config]]
    """Class of its settings. Every field needs a default."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions that it needs and whose version may change an episode; reports name them."""
    install: ClassVar[str] = ""
    """Command that installs `packages`, for messages; default: `pip install` of those that are
    missing."""
    places: ClassVar[tuple[str, ...]] = ()
    """Settings that say only where something is on this machine. `protocol` has to say what is there."""
    notes: ClassVar[tuple[str, ...]] = ()
    """Sentences for a report: which physics, and what is simulated."""
    evaluation_seeds: ClassVar[range] = range(FIRST_EVALUATION_SEED, _ENDLESS)
    """Seeds for evaluation, used from the first one on. Demonstrations never use them."""
    demonstration_seeds: ClassVar[range] = range(FIRST_EVALUATION_SEED)
    """Seeds of demonstrations, disjoint from `evaluation_seeds`."""
    default_align: ClassVar[str | None] = None
    """Task set for alignment if a recipe names none."""
    default_downstream: ClassVar[str | tuple[str, ...] | None] = "all"
    """Task set, or tasks, for evaluation if a recipe names none."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def task_names(self) -> tuple[str, ...]:
        """Return every task, in a fixed order, without the simulator: published results are read
        without it."""

    def task_sets(self) -> Mapping[str, tuple[str, ...]]:
        """Return the sets of tasks that a recipe may give by name."""
        return {"all": self.task_names()}

    @abstractmethod
    def cameras(self, settings: Any) -> tuple[str, ...]:
        """Return the cameras of every observation, in order."""

    def moving_cameras(self) -> frozenset[str]:
        """Return the cameras without a fixed place, about which no question on points of the image
        can be asked."""
        return frozenset()

    @abstractmethod
    def image_size(self, settings: Any) -> int:
        """Return the width and height of every image, pixels."""

    @abstractmethod
    def make(self, settings: Any) -> Benchmark:
        """Return the benchmark, to measure a policy on. Raises RoboAlignError if its simulator is
        missing."""

    @abstractmethod
    def demonstrated(self, settings: Any) -> DemonstratedBenchmark:
        """Return the benchmark with its experts, to collect demonstrations from."""

    def require_alignable(self, task: str) -> None:
        """Raise RoboAlignError if questions about the task would not have a unique right answer."""
        return

    def measured_tasks(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """Return the tasks on which a policy of these downstream tasks is measured: the same ones,
        unless the benchmark measures in another way than it demonstrates."""
        return tasks

    def examine(self, settings: Any) -> tuple[str, ...]:
        """Return what `doctor` says about these settings, in sentences. Raises RoboAlignError for
        what is wrong."""
        return ()

    def check(
        self, settings: Any, rollout: RolloutConfig, defaults: RolloutConfig, horizon: int
    ) -> None:
        """Raise ValueError if a recipe's `rollout` (its defaults are given too) contradicts the
        settings.

        `horizon`: action steps per chunk.
        """
        if rollout.replan_every > horizon:
            raise ValueError(
                f"rollout.replan_every {rollout.replan_every} is above tokenizer.horizon {horizon}: a chunk "
                "has no more actions"
            )

    def rollout(self, settings: Any, rollout: RolloutConfig) -> RolloutConfig:
        """Return how a policy is run. A benchmark with its own protocol returns it here."""
        return rollout

    def departures(self, settings: Any) -> dict[str, Any]:
        """Return the settings that differ from the protocol of published results, with their
        values."""
        return {}

    def protocol(self, settings: Any) -> dict[str, Any]:
        """Return the settings that affect a success rate, as JSON values to be stored with the
        episodes."""
        return {
            "first_seed": self.evaluation_seeds.start,
            **settings.model_dump(mode="json"),
        }

    def protocol_line(self, settings: Any, cameras: tuple[str, ...]) -> str:
        """Return the protocol as one line for a report. `cameras` are those that the policy
        sees."""
        return f"{self.image_size(settings)} px, camera {', '.join(cameras)}"


def measured_protocol(
    spec: BenchmarkSpec,
    settings: Any,
    rollout: RolloutConfig,
    episodes: int,
    cameras: Sequence[str],
) -> dict[str, Any]:
    """Return everything besides the policy that affects a success rate, to be stored with the
    episodes.

    `rollout` is what `spec.rollout` returned, `episodes` those per task, `cameras` those that the
    policy sees.
    """
    return {
        "benchmark": spec.name,
        "episodes_per_task": episodes,
        "max_steps": rollout.max_steps,
        "replan_every": rollout.replan_every,
        "cameras": list(cameras),
        **spec.protocol(settings),
    }


_registered: dict[str, type[BenchmarkSpec]] = {}
_specs: dict[str, BenchmarkSpec] = {}


def register_benchmark(name: str, kind: type[BenchmarkSpec]) -> None:
    """Add a benchmark to this process. Worker processes import it by the class's module.

    Raises RoboAlignError if another benchmark has the name, or the class contradicts itself.
    """
    if name in benchmark_names() and _registered.get(name) is not kind:
        raise RoboAlignError(
            f"a benchmark `{name}` exists already",
            where="register_benchmark",
            fix="choose another name",
        )
    _specs[name] = _checked(name, kind, f"register_benchmark({name!r})")
    _registered[name] = kind


def benchmark_names() -> tuple[str, ...]:
    """Return the names of all benchmarks, built in, installed or registered, without importing
    one."""
    return tuple(
        dict.fromkeys((*_BUILT_IN, *sorted(installed(BENCHMARK_ENTRY_POINTS)), *_registered))
    )


def find_benchmark(name: str) -> BenchmarkSpec:
    """Return the benchmark of this name.

    Raises RoboAlignError that lists the names if there is none, or names the package if its entry
    point fails.
    """
    if name not in _specs:
        _specs[name] = _load(name)
    return _specs[name]


def make_benchmark(name: str, **settings: Any) -> DemonstratedBenchmark:
    """Return a benchmark with its experts by name, under `settings` of its section.

    Raises RoboAlignError for an unknown name, pydantic's ValidationError for a wrong setting.
    """
    spec = find_benchmark(name)
    return spec.demonstrated(spec.config(**settings))


def sections() -> dict[str, BenchmarkSpec]:
    """Return key below `collect` -> a benchmark that reads it. A package that cannot be loaded is
    left out."""
    found: dict[str, BenchmarkSpec] = {}
    for name in benchmark_names():
        try:
            spec = find_benchmark(name)
        except RoboAlignError:
            continue
        found.setdefault(spec.section, spec)
    return found


def _load(name: str) -> BenchmarkSpec:
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return _checked(name, getattr(importlib.import_module(module), attribute), module)
    point = find_plugin(BENCHMARK_ENTRY_POINTS, name)
    if point is None:
        raise RoboAlignError(
            f"benchmark `{name}` not found. Available: {', '.join(benchmark_names())}",
            where="benchmark",
            fix="choose one of these, or install the package that has it",
        )
    return _checked(name, load_plugin(point), package_of(point))


def _checked(name: str, kind: Any, where: str) -> BenchmarkSpec:
    """Return an instance of `kind`, after checking that its class sets everything required."""
    if not (isinstance(kind, type) and issubclass(kind, BenchmarkSpec)):
        raise RoboAlignError(
            f"{kind!r} is no subclass of roboalign.sim.registry.BenchmarkSpec",
            where=where,
            fix="let the entry point name a subclass",
        )
    try:
        spec = kind(name)
        tasks = spec.task_names()
    except Exception as error:
        raise RoboAlignError(
            f"{kind.__name__}({name!r}) fails ({type(error).__name__}: {error})", where=where
        ) from error
    missing = [field for field in ("title", "section", "config") if not hasattr(kind, field)]
    if missing:
        raise RoboAlignError(f"{kind.__name__} has no {', '.join(missing)}", where=where)
    if not tasks or len(set(tasks)) < len(tasks):
        raise RoboAlignError(
            f"{kind.__name__}.task_names() is empty or names a task twice", where=where
        )
    measure, train = spec.evaluation_seeds, spec.demonstration_seeds
    if measure.step != 1 or train.step != 1 or not measure or not train:
        raise RoboAlignError("its ranges of seeds are empty or have a step", where=where)
    if measure.start < train.stop and train.start < measure.stop:
        raise RoboAlignError(
            f"its demonstrations {train} use seeds that measure {measure}",
            where=where,
            fix="make demonstration_seeds and evaluation_seeds disjoint",
        )
    return spec
