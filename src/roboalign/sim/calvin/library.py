"""Import CALVIN's simulator from a checkout and build it without its data set.

What the checkout needs to run on current packages is added around it; no file of it is changed.
`SHIMS` names each such addition, for the record of a measurement.
"""

import contextlib
import functools
import importlib
import inspect
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.sim.calvin.checkout import Checkout
from roboalign.sim.calvin.config import CalvinConfig

PACKAGES = (
    "pybullet",
    "numpy-quaternion",
    "hydra-core",
    "omegaconf",
    "GitPython",
    "gymnasium",
    "opencv-python-headless",
    "scipy",
)
INSTALL_PACKAGES = "pip install --no-deps -r requirements-calvin.lock"
SHIMS = (
    "gymnasium in place of gym",
    "configuration assembled from the checkout's YAML files",
    "Bullet calls without a client id go to the environment's own",
    "gripper command made -1 or 1",
    "cameras drawn only when the policy looks",
)
_GYM = ("", ".utils", ".utils.seeding")


@functools.cache
def load_simulator(checkout: Checkout) -> Any:
    """Import calvin_env from the checkout and return its module `envs.play_table_env`.

    Raises RoboAlignError if a package is missing, or another calvin_env was imported before.
    """
    if str(checkout.simulator) not in sys.path:
        sys.path.insert(0, str(checkout.simulator))
    try:
        with _gym_stand_in(), _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Hydra advises CALVIN on its next version
            module = importlib.import_module("calvin_env.envs.play_table_env")
        for name in ("envs.tasks", "robot.robot", "robot.mixed_ik"):
            importlib.import_module(f"calvin_env.{name}")
    except ImportError as error:
        raise RoboAlignError(
            f"CALVIN cannot be imported ({error})",
            where=str(checkout.simulator),
            fix=INSTALL_PACKAGES,
        ) from None
    if not Path(str(module.__file__)).resolve().is_relative_to(checkout.simulator):
        raise RoboAlignError(
            f"another calvin_env was imported before, from {module.__file__}",
            where=str(checkout.simulator),
            fix="use one checkout in a process, and uninstall calvin_env",
        )
    for name in ("envs.play_table_env", "robot.robot", "robot.mixed_ik"):
        vars(sys.modules[f"calvin_env.{name}"])["p"] = BULLET
    return module


@contextlib.contextmanager
def _gym_stand_in() -> Iterator[None]:
    """Let `import gym` find gymnasium while CALVIN is imported, and no longer."""
    before = {f"gym{part}": sys.modules.get(f"gym{part}") for part in _GYM}
    for part in _GYM:
        sys.modules[f"gym{part}"] = importlib.import_module(f"gymnasium{part}")
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Bullet:
    """PyBullet, where a call without a client id goes to `client`.

    CALVIN leaves the id out in a few calls, which then go to the first simulation of the process:
    the robot's pedestal and the search path of meshes of a second one would be missing.
    """

    client: int | None = None

    def __getattr__(self, name: str) -> Any:
        import pybullet

        attribute = getattr(pybullet, name)
        if not inspect.isbuiltin(attribute):
            return attribute

        def call(*arguments: Any, **named: Any) -> Any:
            if name == "connect":
                self.client = attribute(*arguments, **named)
                return self.client
            if "physicsClientId" in named:
                self.client = named["physicsClientId"]
            elif self.client is not None:
                named["physicsClientId"] = self.client
            return attribute(*arguments, **named)

        return call


BULLET = _Bullet()


def build_simulation(checkout: Checkout, scene: str, config: CalvinConfig) -> Any:
    """Return a new simulation of a scene (`A` to `D`), which draws nothing until it is asked."""
    load_simulator(checkout)
    import hydra
    from omegaconf import OmegaConf

    tree = _configuration(checkout.simulator / "conf", scene, config)
    with _quiet():
        return hydra.utils.instantiate(OmegaConf.create(tree)["env"])


def _configuration(conf: Path, scene: str, config: CalvinConfig) -> dict[str, Any]:
    """Assemble what the data set's `.hydra/merged_config.yaml` holds."""
    from omegaconf import OmegaConf

    def read(path: str) -> dict[str, Any]:
        values: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(conf / path), resolve=False)  # type: ignore[assignment]
        return values

    robot = {**read("robot/panda.yaml"), **read("robot/panda_longer_finger.yaml")}
    robot.pop("defaults", None)
    environment = read("env/play_table_env.yaml")
    environment |= {"use_egl": config.render == "egl", "show_gui": False, "use_scene_info": True}
    return {
        "scene": read(f"scene/calvin_scene_{scene}.yaml"),
        "robot": robot,
        "cameras": {name: read(f"cameras/cameras/{name}.yaml") for name in ("static", "gripper")},
        "env": environment,
        "data_path": "data",
        "use_vr": False,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Python and Bullet's C code print about every connection."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(io.StringIO()):
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def close(simulation: Any) -> None:
    """Disconnect a simulation once: its destructor would disconnect whichever has its number then."""
    with _quiet():
        simulation.close()
    simulation.close = lambda: None


@functools.cache
def oracle(checkout: Checkout) -> Any:
    """Return the judge of the 34 tasks."""
    load_simulator(checkout)
    return sys.modules["calvin_env.envs.tasks"].Tasks(checkout.oracle_tasks())


@functools.cache
def renderer(render: str) -> str:
    """Return which renderer draws, for EGL with OpenGL's own name of it."""
    if render == "tiny":
        return "TinyRenderer"
    code = (
        "import pybullet as p, importlib.util as u; c = p.connect(p.DIRECT); "
        "s = u.find_spec('eglRenderer'); "
        "p.loadPlugin(s.origin, '_eglRendererPlugin') if s else p.loadPlugin('eglRendererPlugin')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    names = [
        line.partition("=")[2].strip()
        for line in done.stdout.splitlines()
        if line.startswith(("GL_RENDERER", "GL_VERSION"))
    ]
    if done.returncode or not names:
        raise RoboAlignError(
            "OpenGL through EGL does not start",
            where="calvin.render",
            fix="install a GL driver (libegl1, libgl1-mesa-dri), or take calvin.render=tiny and say so",
        )
    return "EGL, " + ", ".join(dict.fromkeys(names))
