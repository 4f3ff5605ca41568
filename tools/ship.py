"""Put the base model of a run into the package: `python -m tools.ship runs/base`."""

import sys
from pathlib import Path

import torch

from roboalign.core.command import exit_status
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, hash_file, read_json, write_json
from roboalign.mllm.load import load_mllm, save_mllm
from roboalign.mllm.shipped import pretrained_folder
from roboalign.run.folder import mixture_folder

MAX_BYTES = 10_000_000


def ship(run_dir: str | Path) -> Path:
    """Write the pretrained model of `run_dir` at 16 bits to where `backbone.source: builtin` looks.

    With it goes training.json: the recipe's key, the tasks and seeds it was trained on, its manifest's hash.
    Raises RoboAlignError where the weights would pass 10 MB.
    """
    run_dir, target = Path(run_dir), pretrained_folder()
    stage = read_json(run_dir / "base" / "stage.json", fix="roboalign base recipes/base.yaml")
    manifest = read_json(mixture_folder(run_dir) / "manifest.json")
    with atomic_path(target) as folder:
        save_mllm(load_mllm(run_dir / "base" / "pretrain" / "model"), folder, dtype=torch.float16)
        weights = (folder / "model.safetensors").stat().st_size
        if weights > MAX_BYTES:
            raise RoboAlignError(
                f"the weights take {weights / 1e6:.1f} MB",
                where="backbone.tiny",
                fix="a model that ships with the package takes at most 10 MB: lower its widths",
            )
        write_json(
            folder / "training.json",
            {
                "recipe": "recipes/base.yaml",
                "key": stage["key"],
                "updates": stage["updates"],
                "samples": stage["samples"],
                "seconds": stage["seconds"],
                "parameters": stage["parameters"],
                "episodes": sorted(manifest["splits"]["train"]),
                "mixture_sha256": hash_file(mixture_folder(run_dir) / "manifest.json"),
            },
        )
    return target


if __name__ == "__main__":
    sys.exit(exit_status(lambda: print(ship(sys.argv[1])) or 0))
