"""The files of launch/: each is read by what reads it in use, as far as that is installed here."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

LAUNCH = Path(__file__).parents[2] / "launch"
CONFIGS = sorted((LAUNCH / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_it(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.stem == "one_gpu" else 8)
    kind = {
        "one_gpu": "NO",
        "eight_gpus": "MULTI_GPU",
        "eight_gpus_fsdp2": "FSDP",
    }
    assert config.distributed_type.value == kind[path.stem]
    # What the file tells of, it also says in its first line.
    assert path.read_text().startswith(
        f"# accelerate launch --config_file launch/accelerate/{path.name} -m roboalign "
    )


def test_fsdp_is_version_2_and_writes_whole_models() -> None:
    arguments = [
        "--config_file",
        str(LAUNCH / "accelerate" / "eight_gpus_fsdp2.yaml"),
        "-m",
        "roboalign",
        "sft",
    ]
    options, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert options.use_fsdp and int(options.fsdp_version) == 2
    assert options.fsdp_state_dict_type == "FULL_STATE_DICT"


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_the_shell_reads_it(name: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


def test_what_torchrun_is_given(tmp_path: Path) -> None:
    """A torchrun that prints its arguments stands in; Slurm's commands and variables likewise."""
    for name, body in {
        "torchrun": 'echo "$@"',
        "scontrol": "printf 'a1\\na2\\n'",
        "srun": 'shift; exec "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    given = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "a[1-2]",
    }
    command = ["bash", "launch/slurm.sbatch", "sft", "r.yaml", "--set", "a=b c"]
    done = subprocess.run(
        command, cwd=LAUNCH.parent, env=given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (
        "--nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=a1:29500 --rdzv-id=77 "
        "-m roboalign sft r.yaml --set a=b c"
    )


def test_the_skypilot_file_is_a_task() -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["num_nodes"] == 2 and task["resources"] == {"accelerators": "H100:8"}
    assert (LAUNCH.parent / task["envs"]["RECIPE"]).is_file()
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
