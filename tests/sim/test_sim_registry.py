"""The registry of benchmarks: names, lookups, what a package can get wrong, and that reading needs no simulator."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roboalign.core import plugins
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.run.recipe import Recipe
from roboalign.sim import registry
from roboalign.sim.libero.task_names import SUITE_TASKS
from roboalign.sim.metaworld.instructions import HELD_OUT, TRAIN
from roboalign.sim.registry import (
    BenchmarkSpec,
    benchmark_names,
    find_benchmark,
    make_benchmark,
    register_benchmark,
    sections,
)
from roboalign.sim.rollout import RolloutConfig

RESULTS = Path(__file__).parents[2] / "docs" / "results"
BUILT_IN = (
    "metaworld",
    "libero",
    *(f"libero_{suite}" for suite in ("spatial", "object", "goal", "10", "90")),
    *(
        f"libero_{suite}_{perturbation}"
        for suite in ("spatial", "object", "goal", "10")
        for perturbation in ("swap", "object", "lan", "task")
    ),
    "calvin",
)
# Fails the import of every simulator, as where none is installed.
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("libero", "robosuite", "metaworld", "mujoco"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""


class Settings(Config):
    """A benchmark's settings."""

    cameras: tuple[str, ...] = ("top",)
    """Cameras."""
    image_size: int = 32
    """Pixels."""


class Plain(BenchmarkSpec):
    """The least that a benchmark says."""

    title = "Plain"
    section = "plain"
    config = Settings

    def task_names(self) -> tuple[str, ...]:
        return (f"{self.name}/one", f"{self.name}/two")

    def cameras(self, settings: Settings) -> tuple[str, ...]:
        return settings.cameras

    def image_size(self, settings: Settings) -> int:
        return settings.image_size

    def make(self, settings: Settings) -> Any:
        return settings

    demonstrated = make


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_specs", {})


def install(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    point = EntryPoint(name, value, registry.BENCHMARK_ENTRY_POINTS)._for(
        SimpleNamespace(name="lab-robots")
    )  # type: ignore[arg-type]
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: [point] if group == point.group else []
    )


def test_the_built_in_benchmarks_say_what_they_are() -> None:
    assert benchmark_names()[: len(BUILT_IN)] == BUILT_IN
    world, goal = find_benchmark("metaworld"), find_benchmark("libero_goal")
    assert len(world.task_names()) == 50 and world.task_sets()["ml45"] == TRAIN
    assert world.default_downstream == HELD_OUT and world.section == "world"
    assert goal.task_names()[0] == "libero_goal/open_the_middle_drawer_of_the_cabinet"
    assert goal.evaluation_seeds == range(50) and goal.demonstration_seeds[0] == 1000
    assert goal.moving_cameras() == {"wrist"} and goal.section == "libero"
    assert set(sections()) >= {"world", "libero"}
    for name in BUILT_IN:
        spec = find_benchmark(name)
        assert spec is find_benchmark(name) and spec.name == name
        assert not {*spec.evaluation_seeds[:200]} & {*spec.demonstration_seeds[:200]}


def test_more_steps_than_meta_world_has_are_refused() -> None:
    world = find_benchmark("metaworld")
    whole = RolloutConfig(max_steps=500)
    assert world.rollout(world.config(), whole) is whole
    with pytest.raises(RoboAlignError, match="Meta-World has 500 steps, not 501"):
        world.rollout(world.config(), RolloutConfig(max_steps=501))


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        RoboAlignError, match=r"`mataworld` not found. Available: metaworld, libero"
    ):
        find_benchmark("mataworld")


def test_a_registered_benchmark_is_a_recipe_s(monkeypatch: pytest.MonkeyPatch) -> None:
    register_benchmark("mine", Plain)
    register_benchmark("mine", Plain)  # the same again says nothing new
    assert "mine" in benchmark_names()
    recipe = Recipe.model_validate(
        {"name": "x", "collect": {"benchmark": "mine", "plain": {"image_size": 8}}}
    )
    assert recipe.collect.settings == Settings(image_size=8)
    assert recipe.collect.downstream_names() == ("mine/one", "mine/two")
    assert recipe.collect.model_dump()["plain"] == {"cameras": ("top",), "image_size": 8}
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert make_benchmark("mine", image_size=9).image_size == 9
    with pytest.raises(RoboAlignError, match="`metaworld` exists already"):
        register_benchmark("metaworld", Plain)


def test_a_section_that_no_benchmark_of_the_recipe_reads_is_checked_and_left_out() -> None:
    unused = {"name": "x", "collect": {"libero": {"render": "fast"}}}
    recipe = Recipe.model_validate(unused)
    assert "libero" not in recipe.model_dump()["collect"] and recipe == Recipe(name="x")
    with pytest.raises(ValueError, match=r"collect\.libero\.render"):
        Recipe.model_validate({"name": "x", "collect": {"libero": {"render": "slow"}}})


class Shadow(Plain):
    """Its section is a key of `collect`."""

    section = "align"


class Twin(Plain):
    """Its section is Meta-World's, its settings are not."""

    section = "world"


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (Shadow, "its section `align` is a key of collect itself"),
        (Twin, "its section `world` is the section of the other benchmark of this recipe too"),
    ],
)
def test_a_section_means_one_thing(kind: type[BenchmarkSpec], problem: str) -> None:
    register_benchmark("mine", kind)
    with pytest.raises(RoboAlignError) as error:
        Recipe.model_validate({"name": "x", "collect": {"benchmark": "mine"}})
    assert error.value.problem.startswith(problem) and error.value.where == "benchmark mine"


def test_an_installed_benchmark_is_found_by_its_entry_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, "toy", f"{__name__}:Plain")
    assert benchmark_names() == (*BUILT_IN, "toy")
    assert find_benchmark("toy").task_names() == ("toy/one", "toy/two")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("no_such_module:Spec", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("os.path:Spec", "AttributeError"),
        ("os.path:join", "no subclass of roboalign.sim.registry.BenchmarkSpec"),
        (f"{__name__}:NoTasks", "empty or names a task twice"),
        (f"{__name__}:Leaky", "use seeds that measure"),
        (f"{__name__}:NoSection", "has no title, section, config"),
        (f"{__name__}:Abstract", "abstract"),
        (f"{__name__}:Raises", "RuntimeError: no licence"),
    ],
)
def test_a_broken_package_is_one_message_with_its_name(
    monkeypatch: pytest.MonkeyPatch, value: str, problem: str
) -> None:
    install(monkeypatch, "toy", value)
    with pytest.raises(RoboAlignError) as error:
        find_benchmark("toy")
    assert problem in str(error.value) and "package lab-robots" in error.value.where
    # It says nothing where another benchmark is asked for, not even where sections are listed.
    assert find_benchmark("metaworld").name == "metaworld" and set(sections()) == {
        "world",
        "libero",
        "calvin",
    }
    with pytest.raises(RoboAlignError, match="package lab-robots"):
        Recipe.model_validate({"name": "x", "collect": {"benchmark": "toy"}})


class NoTasks(Plain):
    """Has none."""

    def task_names(self) -> tuple[str, ...]:
        return ()


class Leaky(Plain):
    """Demonstrates what it measures."""

    evaluation_seeds = range(10, 20)
    demonstration_seeds = range(11)


class Raises(Plain):
    """Fails when it is made."""

    def __init__(self, name: str) -> None:
        raise RuntimeError("no licence")


class NoSection(BenchmarkSpec):
    """Says neither title nor section nor settings."""

    task_names = Plain.task_names
    cameras = Plain.cameras
    image_size = Plain.image_size
    make = Plain.make
    demonstrated = Plain.make


class Abstract(BenchmarkSpec):
    """Says nothing."""


def test_the_names_of_libero_s_tasks_are_the_library_s() -> None:
    pytest.importorskip("libero.libero", reason="LIBERO is optional: requirements-libero.lock")
    from roboalign.sim.libero.suites import load_library

    load_library()
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    for suite, tasks in SUITE_TASKS.items():
        assert list(tasks) == libero_task_map[suite], suite


def test_recipes_and_published_results_are_read_without_any_simulator(tmp_path: Path) -> None:
    code = f"""{BLOCKED}
from roboalign.cli.compare import compare_runs
from roboalign.cli.table import column, tables
from roboalign.run.benchmark import installed_versions
from roboalign.run.load import load_recipe
from roboalign.run.published import write_published
import sys
from pathlib import Path

load_recipe("recipes/libero-tiny.yaml")
print(compare_runs(["docs/results/libero-tiny"], ["sft", "roboalign"]))
print(compare_runs(["docs/results/libero-tiny", "docs/results/libero-aligned"]))
print(column([Path("docs/results/libero-tiny-spatial")], "libero-spatial"))
print(tables([Path("docs/results/libero-tiny-spatial")]))
write_published(Path("docs/results/libero-tiny"), Path(sys.argv[1]))
print(installed_versions(("numpy", "no-such-simulator")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "page.html")],
        cwd=RESULTS.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "pairs of the same initial state" in done.stdout
    assert "no-such-simulator not installed" in done.stdout
    assert "<h1>libero-tiny</h1>" in (tmp_path / "page.html").read_text()


def test_the_blocker_blocks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{BLOCKED}\nimport mujoco"], capture_output=True, text=True
    )
    assert "mujoco is blocked" in done.stderr
