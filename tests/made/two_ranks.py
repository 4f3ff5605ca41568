"""Two ranks, started, ended and given a store as torchrun does, but forked from a process that has imported all."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from own_process import FORKED

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "align")]


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit status (negative: the signal that killed it) and what it wrote."""

    status: int | None
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        assert "Traceback" not in self.stderr, self.stderr[-3000:]
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


def with_one_table(mllm: Any) -> Any:
    """The model with one table for input and output, as the smaller Qwen models have it."""
    mllm.model.config.tie_word_embeddings = True
    mllm.model.config.text_config.tie_word_embeddings = True
    mllm.model.tie_weights()
    assert mllm.model.get_output_embeddings().weight is mllm.model.get_input_embeddings().weight
    return mllm


def split_model() -> None:
    """Set this process's environment as `accelerate launch` does with the file that splits the model."""
    file = HERE.parents[1] / "launch" / "accelerate" / "eight_gpus_fsdp2.yaml"
    given, *_ = _validate_launch_command(
        launch_command_parser().parse_args(
            ["--config_file", str(file), "--main_process_port", "0", "script.py"]
        )
    )
    told = prepare_multi_gpu_env(given)
    os.environ.update(
        {name: told[name] for name in told if name.startswith(("FSDP_", "ACCELERATE_"))}
    )


def two_ranks(
    work: Callable[..., Any], *arguments: Any, logs: Path, timeout: float = 500
) -> list[Ended]:
    """Run `work(*arguments)` on both ranks; its result is the exit status.

    Once one has failed, the other gets SIGTERM; what does not end in time is killed.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs.mkdir(parents=True, exist_ok=True)
    ranks = [
        FORKED.Process(target=_rank, args=(rank, store.port, logs, work, arguments))
        for rank in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    last = time.monotonic() + timeout
    while any(rank.is_alive() for rank in ranks) and time.monotonic() < last:
        time.sleep(0.1)
        if any(rank.exitcode for rank in ranks):
            last = min(last, time.monotonic() + 30)
            for rank in ranks:
                rank.terminate()
    for rank in ranks:
        rank.kill()
        rank.join()
    said = [
        [(logs / f"{name}-{rank}").read_text() for name in ("stdout", "stderr")] for rank in (0, 1)
    ]
    return [Ended(rank.exitcode, *texts) for rank, texts in zip(ranks, said)]


def _rank(
    rank: int, port: int, logs: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(
            os.open(logs / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number
        )
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_PORT": port,
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": 1,
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }
    os.environ.update({name: str(value) for name, value in place.items()})
    try:
        status = work(*arguments)
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)  # as it is: no exit handler of the test's process
