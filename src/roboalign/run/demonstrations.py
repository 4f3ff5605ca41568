"""The recipe's section on demonstrations: benchmarks, alignment tasks, evaluation tasks and seeds.

What a benchmark allows comes from its `BenchmarkSpec` (sim/registry.py); this module knows no
simulator.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, GetJsonSchemaHandler, TypeAdapter, ValidationError, model_validator
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.sim.collect import CollectConfig
from roboalign.sim.registry import BenchmarkSpec, benchmark_names, find_benchmark, sections
from roboalign.sim.rollout import RolloutConfig


def require_distinct(field: str, values: Sequence[Any]) -> None:
    """Raise ValueError if a value occurs twice: it would be measured once and counted twice."""
    if not values:
        raise ValueError(f"{field} is empty")
    if len(set(values)) < len(values):
        raise ValueError(f"{field} names something twice: {list(values)}")


class DemonstrationsConfig(Config):
    """Demonstrations by scripted experts. Alignment and downstream tasks are disjoint.

    Each benchmark's own settings are a section here (`world` of Meta-World, `libero` of LIBERO's
    suites), the same for demonstrations and rollouts. The section of an unused benchmark is checked
    and left out.
    """

    model_config = ConfigDict(extra="allow")

    benchmark: str = "metaworld"
    """Where the head is trained and the policy measured: `metaworld`, `calvin`, `libero` (its
    four suites), one suite of it (`libero_spatial`, `libero_object`, `libero_goal`, `libero_10`,
    `libero_90`), or a benchmark of an installed package."""
    align_benchmark: str = "metaworld"
    """Where the alignment demonstrations come from (unless a mixture gives them): questions, action
    tokens and their FAST tokenizer are for its robot, and `mix.camera` is one of its cameras."""
    align_tasks: tuple[str, ...] | str | None = None
    """Tasks of `align_benchmark` whose demonstrations align the MLLM, or the name of a set of them.
    Default: the benchmark's own, on Meta-World `ml45`, ML45's 45 training tasks."""
    downstream_tasks: tuple[str, ...] | str | None = None
    """Tasks of `benchmark` on which the head is trained and the policy measured, none of them an
    alignment task, or the name of a set of them. Default: the benchmark's own, on Meta-World ML45's
    5 test tasks, on LIBERO `all`."""
    align: CollectConfig = CollectConfig()
    """How the alignment tasks are collected."""
    downstream: CollectConfig = CollectConfig()
    """How the downstream tasks are collected."""
    head_cameras: tuple[str, ...] = ()
    """Cameras of `benchmark` that the head sees, in order. Default: `mix.camera` if `benchmark`
    has it, else its first camera."""

    @property
    def spec(self) -> BenchmarkSpec:
        """Return the benchmark on which the policy is measured."""
        return find_benchmark(self.benchmark)

    @property
    def align_spec(self) -> BenchmarkSpec:
        """Return the benchmark whose demonstrations align."""
        return find_benchmark(self.align_benchmark)

    @property
    def settings(self) -> Any:
        """Return the settings of the measuring benchmark, an instance of `spec.config`."""
        return getattr(self, self.spec.section)

    @property
    def align_settings(self) -> Any:
        """Return the settings of the aligning benchmark, an instance of `align_spec.config`."""
        return getattr(self, self.align_spec.section)

    def align_names(self) -> tuple[str, ...]:
        """Return the alignment tasks by name."""
        return _task_names("align_tasks", self.align_tasks, self.align_spec)

    def align_cameras(self) -> tuple[str, ...]:
        """Return the cameras of the alignment demonstrations."""
        return self.align_spec.cameras(self.align_settings)

    def align_image_size(self) -> int:
        """Return the width and height of their images, in pixels."""
        return self.align_spec.image_size(self.align_settings)

    def downstream_names(self) -> tuple[str, ...]:
        """Return the downstream tasks by name."""
        return _task_names("downstream_tasks", self.downstream_tasks, self.spec)

    def shown_cameras(self, preferred: str) -> tuple[str, ...]:
        """Return the cameras that the head sees: `head_cameras`, else `preferred` if there is one,
        else the first."""
        cameras = self.spec.cameras(self.settings)
        return self.head_cameras or ((preferred,) if preferred in cameras else cameras[:1])

    @classmethod
    def sections(cls) -> dict[str, type[Config]]:
        """Return the keys that are not fields: the benchmarks' sections, with the class of each."""
        return {section: spec.config for section, spec in sections().items()}

    @model_validator(mode="before")
    @classmethod
    def _read_sections(cls, values: Any) -> Any:
        """Check each benchmark's section with its own class, and fill in the benchmarks' own
        defaults."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        measure, align = (
            _named(field, values.get(field, cls.model_fields[field].default))
            for field in ("benchmark", "align_benchmark")
        )
        used = _sections_of([spec for spec in (align, measure) if spec], cls.model_fields)
        given = [key for key in values if key not in cls.model_fields]
        known = used if set(given) <= set(used) else {**cls.sections(), **used}
        for section in given:
            if section not in known:
                raise _unknown_key(section, values[section])
            value = values.pop(section)
            checked = TypeAdapter(dict[str, known[section]]).validate_python({section: value})  # type: ignore[valid-type]
            values |= checked if section in used else {}
        for section, kind in used.items():
            values.setdefault(section, kind())
        for field, default in (
            ("align_tasks", align and align.default_align),
            ("downstream_tasks", measure and measure.default_downstream),
        ):
            if values.get(field) is None:
                values[field] = default
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "DemonstrationsConfig":
        aligning, measuring = self.align_names(), self.downstream_names()
        if both := sorted({*aligning} & {*measuring}):
            raise ValueError(
                f"tasks {both[:3]} are in align_tasks and in downstream_tasks; remove them from one"
            )
        _check_seeds("align", self.align, self.align_spec)
        _check_seeds("downstream", self.downstream, self.spec)
        cameras = self.spec.cameras(self.settings)
        if unknown := sorted({*self.head_cameras} - {*cameras}):
            raise ValueError(
                f"head_cameras {unknown} are not among {self.spec.section}.cameras {list(cameras)}"
            )
        return self

    def check_run(
        self, camera: str | None, rollout: RolloutConfig, episodes: int, horizon: int
    ) -> None:
        """Raise ValueError if `mix.camera`, `rollout` or `tokenizer.horizon` contradict the
        benchmarks.

        `camera` is `mix.camera`, or None if no benchmark's experts align. `episodes`: evaluation
        episodes per task.
        """
        if camera is not None:
            self._check_camera(camera)
        if episodes > len(self.spec.evaluation_seeds):
            raise ValueError(
                f"rollout.episodes is {episodes}, and {self.benchmark} has "
                f"{len(self.spec.evaluation_seeds)} evaluation episodes a task"
            )
        defaults = type(rollout)()
        self.spec.check(self.settings, rollout, defaults, horizon)

    def _check_camera(self, camera: str) -> None:
        if camera not in self.align_cameras():
            raise ValueError(
                f"mix.camera {camera!r} is not among collect.{self.align_spec.section}.cameras "
                f"{list(self.align_cameras())}"
            )
        if camera in self.align_spec.moving_cameras():
            still = [c for c in self.align_cameras() if c not in self.align_spec.moving_cameras()]
            raise ValueError(
                f"mix.camera `{camera}` moves with the hand, and questions about points of the image need "
                f"a camera that does not move; give {' or '.join(f'`{c}`' for c in still) or 'another'}"
            )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the fields, then the sections of this package's benchmarks and of the installed
        ones."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema["additionalProperties"] = False
        for section, kind in cls.sections().items():
            schema["properties"][section] = handler(kind.__pydantic_core_schema__)
        return schema


def _named(field: str, name: Any) -> BenchmarkSpec | None:
    """Return the benchmark of a recipe's key; None if the value is not text, which the field's own
    check reports."""
    if not isinstance(name, str):
        return None
    if name in benchmark_names():
        return find_benchmark(name)  # a package that cannot be loaded raises its own error
    try:
        return find_benchmark(name)
    except RoboAlignError as error:
        fault = PydanticCustomError("benchmark", "{problem}", {"problem": error.problem})
        raise _fault(fault, field, name) from None


def _sections_of(
    specs: Sequence[BenchmarkSpec], fields: Collection[str]
) -> dict[str, type[Config]]:
    """Return section -> class of its settings. Raises RoboAlignError if a section is ambiguous."""
    used: dict[str, type[Config]] = {}
    for spec in specs:
        problem = ""
        if spec.section in fields:
            problem = "a key of collect itself"
        elif used.setdefault(spec.section, spec.config) is not spec.config:
            problem = "the section of the other benchmark of this recipe too, with other settings"
        if problem:
            raise RoboAlignError(
                f"its section `{spec.section}` is {problem}",
                where=f"benchmark {spec.name}",
                fix="give its BenchmarkSpec another section",
            )
    return used


def _unknown_key(key: str, value: Any) -> ValidationError:
    return _fault("extra_forbidden", key, value)


def _fault(kind: str | PydanticCustomError, key: str, value: Any) -> ValidationError:
    details = InitErrorDetails(type=kind, loc=(key,), input=value)
    return ValidationError.from_exception_data("DemonstrationsConfig", [details])


def _task_names(
    field: str, tasks: tuple[str, ...] | str | None, spec: BenchmarkSpec
) -> tuple[str, ...]:
    """Return tasks by name. Raises ValueError for a set or a task that the benchmark does not
    have."""
    sets = spec.task_sets()
    known = ", ".join(f"`{name}`" for name in sets)
    if tasks is None:
        raise ValueError(f"{field} is not given; name tasks of {spec.name}, or {known}")
    if isinstance(tasks, str):
        if tasks not in sets:
            raise ValueError(
                f"{field}: {spec.name} has no set of tasks `{tasks}`; name tasks, or {known}"
            )
        tasks = sets[tasks]
    require_distinct(field, tasks)
    names = spec.task_names()
    if unknown := sorted({*tasks} - {*names}):
        raise ValueError(
            f"{field}: unknown tasks {unknown[:3]} of {spec.name}; its tasks are called like {names[0]}"
        )
    return tasks


def _check_seeds(part: str, settings: CollectConfig, spec: BenchmarkSpec) -> None:
    first = settings.first_seed
    last = first + settings.episodes_per_task * settings.attempts - 1
    allowed, measuring = spec.demonstration_seeds, spec.evaluation_seeds
    if first < allowed.start or last >= allowed.stop:
        raise ValueError(
            f"{part}.first_seed is {first}, and seeds up to {last} would be used; demonstrations of "
            f"{spec.name} use seeds from {allowed.start} to {allowed.stop - 1}, evaluation those from "
            f"{measuring.start} on"
        )
