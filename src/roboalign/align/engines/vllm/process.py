"""Start, watch and end this process's own `vllm serve` on its own GPU
(docs/how-to/vllm-and-verl.md)."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from roboalign.align.engines.vllm import guard as vllm_guard
from roboalign.align.engines.vllm.client import GOES_ON, SERVER_OPTIONS, VllmConfig
from roboalign.core.errors import RoboAlignError
from roboalign.core.http import Telling

_POLL = 0.2  # seconds between two checks of a server that is starting
ENDING = (
    2 * vllm_guard.GRACE + 5.0
)  # seconds after which a guard that was told to end is itself killed
QUOTED, _WIDE = (
    3,
    400,
)  # lines of the log in a message if it shows no error, and characters of each line
ERROR, REMARK = re.compile(r"(Error|Exception)\b: "), re.compile(r"\b(DEBUG|INFO|WARNING)\b")
TAIL = 200_000  # bytes of the log that are searched for these lines
OURS = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_RANK",
        "ROLE_NAME",
        "ROLE_WORLD_SIZE",
        "NODE_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
    }
)
"""Variables of this process, its launcher and its Python that a server in another environment must
not see."""
LAUNCHERS = ("TORCHELASTIC_", "TORCH_NCCL_", "ACCELERATE_", "FSDP_")
"""Prefixes of other such variables."""


class VllmProcess:
    """A vLLM server on a Unix socket in a folder that only this user can enter, so it needs no port
    and no key.

    It ends with this process, however that ends (guard.py).
    """

    def __init__(
        self,
        config: VllmConfig,
        folder: Path,
        log: Path,
        device: torch.device,
        images: int = 1,
    ) -> None:
        """Prepare a server without starting it. Raises RoboAlignError if `config.serve` is not an
        executable."""
        self.config, self.log, self.device = config, log, device
        program = shutil.which(str(config.serve))
        if program is None:
            raise RoboAlignError(
                "it is no executable file",
                where=f"rl.vllm.serve: {config.serve}",
                fix="name the `vllm` of an environment in which vLLM is installed, as "
                "/opt/vllm/bin/vllm",
            )
        self._private = tempfile.TemporaryDirectory(
            prefix="roboalign-vllm-", ignore_cleanup_errors=True
        )
        self.socket = str(Path(self._private.name) / "socket")
        self.command = serve_command(config, program, folder, self.socket, images)
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def started(self) -> bool:
        return self._guard is not None

    def start(self) -> None:
        """Start the server and wait until it listens.

        Raises RoboAlignError with the end of its log if the server ends instead, or if `patience`
        is over.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        guard = [
            sys.executable,
            "-I",
            "-S",
            vllm_guard.__file__,
            str(os.getpid()),
            self._private.name,
        ]
        with self.log.open("wb") as log:
            self._guard = subprocess.Popen(
                [*guard, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self.device),
                start_new_session=True,
            )
        tell, end = Telling("vllm"), time.monotonic() + self.config.patience
        while not listens(self.socket):
            self.check()
            if time.monotonic() > end:
                raise RoboAlignError(
                    f"the vLLM server is not up after {self.config.patience:g} s; {self._said()}",
                    where=str(self.log),
                    fix=f"see what it waits for, or give it more rl.vllm.patience; {GOES_ON}",
                )
            tell(f"the server is starting: {self.log}")
            time.sleep(_POLL)

    def check(self) -> None:
        """Raise RoboAlignError with the end of its log if the server has ended."""
        if self._guard is not None and (status := self._guard.poll()) is not None:
            raise RoboAlignError(
                f"the vLLM server of this process has ended (status {status}); {self._said()}",
                where=str(self.log),
                fix=f"correct the error in the log; {GOES_ON}",
            )

    def stop(self) -> None:
        """End the server and all that it started; do nothing if it is not running."""
        if self._guard is not None:
            self._guard.terminate()
            try:
                self._guard.wait(ENDING)
            except subprocess.TimeoutExpired:
                self._guard.kill()  # the kernel then signals the server
                self._guard.wait()
            self._guard = None
        self._private.cleanup()

    def _said(self) -> str:
        """Return the first error in the log, which may cause others, and the last, each with its
        next line; else the log's end."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - TAIL))
            lines = [
                " ".join(line.split()) for line in log.read().decode(errors="replace").splitlines()
            ]
        lines = list(dict.fromkeys(line for line in lines if line))
        errors = [
            place
            for place, line in enumerate(lines)
            if ERROR.search(line) and not REMARK.search(line)
        ]
        chosen = sorted({place + after for place in errors[:1] + errors[-1:] for after in (0, 1)})
        quoted = [lines[place] for place in chosen if place < len(lines)] or lines[-QUOTED:]
        said = " | ".join(line[:_WIDE] for line in quoted)
        return f"its log says: {said}" if said else "its log is empty"


def serve_command(
    config: VllmConfig, program: str, folder: Path, path: str, images: int = 1
) -> list[str]:
    """Return the command that starts the server on the socket `path`. The user's options come last,
    and so prevail."""
    sleep = ["--enable-sleep-mode"] if config.sleep else []
    return [
        program,
        "serve",
        str(folder),
        "--uds",
        path,
        *shlex.split(SERVER_OPTIONS),
        "--limit-mm-per-prompt",
        f'{{"image":{images},"video":0}}',
        "--gpu-memory-utilization",
        f"{config.memory:g}",
        *sleep,
        *config.options,
    ]


def environment(device: torch.device) -> dict[str, str]:
    """Return the server's variables: this process's without those of its launcher, and `device` as
    the only GPU."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in OURS and not name.startswith(LAUNCHERS)
    }
    kept["VLLM_SERVER_DEV_MODE"] = "1"
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        kept["CUDA_VISIBLE_DEVICES"] = seen.split(",")[index].strip() if seen else str(index)
    return kept


def listens(path: str) -> bool:
    """Return whether a server accepts connections on this socket."""
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(path)
        except OSError:
            return False
        return True


def shown(command: list[str]) -> str:
    """Return the command as typed in a shell."""
    return shlex.join(command)
