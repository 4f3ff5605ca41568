"""Resume of families whose folders name weights otherwise than the model in memory does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_models import conversations, model_of
from safetensors.torch import load_file, save_file

from roboalign.align.checkpoints import MANIFEST, read_checkpoint_manifest, write_manifest
from roboalign.align.sft import SftConfig, SftTrainer, train_sft
from roboalign.core.errors import RoboAlignError

CONFIG = SftConfig(
    learning_rate=1e-2, max_steps=4, batch_size=2, micro_batch_size=2, warmup_ratio=0, save_every=2
)


class Killed(Exception):
    """Stands for a kill."""


def killed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that has ended after its checkpoint of update 2."""
    inner = SftTrainer.training_step

    def step(self: SftTrainer, *arguments: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise Killed
        return inner(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(SftTrainer, "training_step", step)
        train_sft(model_of(name), conversations("direct"), CONFIG, folder)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", "llava_onevision"])
def test_a_killed_training_goes_on_with_its_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    train_sft(model_of(name), conversations("direct"), CONFIG, tmp_path / "whole")
    killed(name, tmp_path / "killed", monkeypatch)
    train_sft(model_of(name), conversations("direct"), CONFIG, tmp_path / "killed")
    whole, resumed = (
        load_file(tmp_path / one / "model" / "model.safetensors") for one in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys() and all(
        torch.equal(whole[key], resumed[key]) for key in whole
    )


def test_a_checkpoint_that_lacks_weights_is_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed("qwen3_vl", tmp_path, monkeypatch)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-2"
    file = checkpoint / "model.safetensors"
    stored = load_file(file)
    gone = "model.language_model.norm.weight"
    save_file(
        {name if name != gone else gone[:-1] + "_": value for name, value in stored.items()},
        file,
        metadata={"format": "pt"},
    )
    manifest = read_checkpoint_manifest(checkpoint)
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, manifest["step"], manifest["fingerprint"], manifest["totals"])
    with pytest.raises(
        RoboAlignError, match=rf"checkpoint-2: 1 of its weights are not there \({gone}\)"
    ):
        train_sft(model_of("qwen3_vl"), conversations("direct"), CONFIG, tmp_path)
