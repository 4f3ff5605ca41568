"""Sets up the virtual environment of `make demo` and `make test`; needs nothing but Python.

    python3 tools/set_up.py .venv base libero small

A part that is in place is not installed again; an interrupted set-up continues where pip's cache and the packages in
place let it. Where the machine has no NVIDIA driver, PyTorch's CPU build is tried first: the default index's build for
Linux brings several GB of CUDA libraries.
"""

import argparse
import contextlib
import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
QUICK = ("--retries", "0", "--timeout", "5")
"""For the question whether an index can be reached: seconds, not minutes of retries."""
SAY_EVERY = 5.0
PYTHONS = ((3, 11), (3, 12), (3, 13))
"""Versions that can run RoboAlign, as in the Makefile and pyproject.toml."""
LARGE = re.compile(r"\((\d+(?:\.\d+)?) ([MG]B)\)")
PARTS = {
    "base": "about 0.6 GB without CUDA, two to four minutes on an idle machine",
    "libero": "LIBERO for its tests, about 1.6 GB, a minute or two",
    "bench": "lmms-eval for its tests, under 0.1 GB, under a minute",
    "small": "the small backbone's weights for their tests, about 0.3 GB, under a minute",
}
"""What each part fetches, without PyTorch's CUDA libraries."""


class SetUpError(Exception):
    """A step that failed; the text is what the user reads."""


class Environment:
    """A virtual environment in `folder`, and the marks that say which parts it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.python = self.folder / "bin" / "python"

    def made_by(self) -> str:
        """The interpreter that made it, resolved; "" where it is missing or broken."""
        settings = self.folder / "pyvenv.cfg"
        if not settings.exists() or not self.python.exists():
            return ""
        home = re.search(r"^home\s*=\s*(.+)$", settings.read_text(), re.MULTILINE)
        if not home or not any(self.folder.glob("bin/pip*")):
            return ""
        return str(self.python.resolve())

    def version(self) -> tuple[int, int] | None:
        """Major and minor version of its Python; None where pyvenv.cfg does not say."""
        text = (self.folder / "pyvenv.cfg").read_text()
        found = re.search(r"^version(?:_info)?\s*=\s*(\d+)\.(\d+)", text, re.MULTILINE)
        return (int(found[1]), int(found[2])) if found else None

    def make(self) -> None:
        """Make it new, in place of what is there."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)

    def mark(self, part: str) -> Path:
        return self.folder / (".ready" if part == "base" else f".ready-{part}")

    def packages(self) -> list[Path]:
        """The folders in which installed packages describe themselves."""
        return sorted(self.folder.glob("lib/python*/site-packages/*.dist-info"))

    def drop_half_installed(self) -> None:
        """Forget packages whose installation was cut: pip writes RECORD last, and would take them for whole."""
        for package in self.packages():
            if not (package / "RECORD").exists():
                shutil.rmtree(package)

    def has(self, name: str, version: str) -> bool:
        """Whether the package is installed in this version, with or without a local part such as `+cpu`."""
        wanted = re.compile(rf"{re.escape(name)}-{re.escape(version)}(\+.*)?\.dist-info")
        return any(wanted.fullmatch(package.name) for package in self.packages())

    def pip(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments]


def steps(part: str) -> list[tuple[str, ...]]:
    """The arguments of `pip install` for a part, in order."""
    if part != "base":
        return [("--no-deps", "-r", str(ROOT / f"requirements-{part}.lock"))]
    return [
        ("-r", str(ROOT / "requirements.lock")),
        ("--no-deps", "-r", str(ROOT / "requirements-nodeps.lock")),
        ("--no-deps", "-e", str(ROOT)),
    ]


def fingerprint(part: str) -> str:
    """sha256 of all that decides what a part installs."""
    names = {"base": ("requirements.lock", "requirements-nodeps.lock", "pyproject.toml")}
    files = [ROOT / name for name in names.get(part, (f"requirements-{part}.lock",))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def has_nvidia_driver() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()


def locked_version(name: str) -> str:
    """The version of a package in requirements.lock."""
    found = re.search(rf"^{name}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    if not found:
        raise SetUpError(f"requirements.lock: no version of {name}")
    return found[1]


def install(environment: Environment, label: str, arguments: Sequence[str]) -> None:
    """`pip install` with a line every few seconds. Raises SetUpError with pip's last lines where it fails."""
    command = environment.pip("install", "--progress-bar", "off", *arguments)
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    state = State()
    before = len(environment.packages())
    assert process.stdout is not None
    reader = threading.Thread(target=state.read, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        while True:
            try:
                process.wait(SAY_EVERY)
                break
            except subprocess.TimeoutExpired:
                done = len(environment.packages()) - before
                say(f"{label}: {state.now(done)} ({clock(time.monotonic() - began)})")
    except BaseException:
        process.terminate()
        process.wait()
        raise
    reader.join()
    if process.returncode:
        raise SetUpError(f"pip could not install {label}:\n{state.tail()}")


class State:
    """What pip says it is doing."""

    def __init__(self) -> None:
        self.doing = "starting"
        self.count = 0
        self.to_install = 0
        self.lines: list[str] = []

    def read(self, lines: Iterator[str]) -> None:
        for raw in lines:
            line = raw.strip()
            words = line.split()
            if not words or line.startswith("WARNING: Location"):
                continue
            self.lines.append(line)
            if words[0] in ("Collecting", "Processing", "Requirement"):
                self.count += 1
            if words[0] == "Downloading" and len(words) > 1:
                size = LARGE.search(line)
                name = "-".join(words[1].rsplit("/", 1)[-1].split("-")[:2])
                what = f"fetching {name} {size[0] if size else ''}"
                self.doing = f"package {self.count}, {what}".rstrip()
            elif words[0] in ("Collecting", "Processing"):
                name = words[1].rsplit("/", 1)[-1]
                self.doing = f"package {self.count}, looking at {name}"
            elif line.startswith("Installing collected packages"):
                names = line.split(":", 1)[1].split(",")
                self.to_install = len(names)
                self.doing = f"installing {names[0].strip()}"

    def now(self, installed: int) -> str:
        """What pip is doing, in a few words. `installed`: packages that this call of pip has put in place."""
        if self.to_install > 1:
            return f"installing {self.to_install} packages, {installed} done"
        return self.doing

    def tail(self) -> str:
        errors = [line for line in self.lines if line.startswith("ERROR")]
        return "\n".join(f"  {line}" for line in (errors or self.lines)[-6:])


def install_torch(environment: Environment) -> None:
    """PyTorch's CPU build where that is enough and can be reached; else nothing, and the lock's own index serves it."""
    version = locked_version("torch")
    if environment.has("torch", version) or not sys.platform.startswith("linux"):
        return
    if has_nvidia_driver():
        say(f"torch {version}: the build for NVIDIA GPUs, about 3 GB with its CUDA libraries")
        return
    say(f"torch {version}: no NVIDIA driver here, so PyTorch's CPU build (about 190 MB) is tried")
    index = ("--no-deps", "--index-url", CPU_INDEX, f"torch=={version}")
    if _can_be_had(environment, index):
        install(environment, "torch", index)
    else:
        say(
            f"torch {version}: {CPU_INDEX} cannot be reached; the default index it is, "
            "whose build for Linux has CUDA libraries: about 3 GB, some minutes more"
        )


def _can_be_had(environment: Environment, arguments: Sequence[str]) -> bool:
    question = environment.pip("install", "--quiet", "--dry-run", *QUICK, *arguments)
    try:
        return subprocess.run(question, capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def set_up(environment: Environment, parts: Sequence[str], *, python_was_asked_for: bool) -> None:
    """Bring `environment` to where it has every part; nothing is done where it has."""
    maker = environment.made_by()
    ours = str(Path(sys.executable).resolve())
    unusable = bool(maker) and environment.version() not in (None, *PYTHONS)
    if not maker or unusable or (python_was_asked_for and maker != ours):
        if maker:
            why = ", which cannot run RoboAlign" if unusable else ""
            say(f"{environment.folder} was made by {maker}{why}; it is made again by {ours}")
        environment.make()
    for part in parts:
        mark, wanted = environment.mark(part), fingerprint(part)
        if mark.exists() and mark.read_text().strip() == wanted:
            continue
        say(f"setting up {part} in {environment.folder}, once: {PARTS[part]}")
        began = time.monotonic()
        environment.drop_half_installed()
        if part == "base":
            install_torch(environment)
        for arguments in steps(part):
            install(environment, part, arguments)
        mark.write_text(wanted + "\n")
        say(f"{part} is ready after {clock(time.monotonic() - began)}")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, a file beside it. Wait, and say so, while another set-up has it.

    The kernel releases the lock when its holder ends, also by a kill.
    """
    with Path(f"{folder.absolute()}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up of {folder} is running; this one waits for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def say(line: str) -> None:
    print(f"[set-up] {line}", flush=True)


def main() -> int:
    """The command line: 0, 2 after a failure, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description="Set up RoboAlign's virtual environment.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument(
        "--asked",
        action="store_true",
        help="this Python was asked for: make the folder again for it",
    )
    options = parser.parse_args()
    try:
        with alone(options.folder):
            set_up(Environment(options.folder), options.parts, python_was_asked_for=options.asked)
    except SetUpError as error:
        print(f"error: {error}\n  fix: run the same command again: it continues", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError:
        print(
            "error: the virtual environment could not be made.\n"
            "  fix: install Python's venv module (apt-get install -y python3-venv)",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
