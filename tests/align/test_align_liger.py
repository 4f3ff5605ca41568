"""SFT with Liger's kernels, run by Triton's interpreter on a CPU: the losses and weights of SFT without them, within
rounding. Skipped where liger-kernel or Triton is not installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from roboalign.align.sft import SftConfig, train_sft
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from tools import backbones

pytest.importorskip("triton")
pytest.importorskip("liger_kernel")
REPLACED = {  # of small models: three text layers, two vision blocks
    "qwen2_5_vl": {"LigerRMSNorm": 11, "LigerSwiGLUMLP": 3, "apply_multimodal_rotary_pos_emb": 1},
    "qwen3_vl": {"LigerRMSNorm": 13, "apply_rotary_pos_emb": 1, "apply_rotary_pos_emb_vision": 1},
    "smolvlm": {
        "LigerRMSNorm": 7,
        "LigerSwiGLUMLP": 3,
        "LigerLayerNorm": 5,
        "apply_rotary_pos_emb": 1,
    },
    "llava": {"LigerRMSNorm": 7, "LigerSwiGLUMLP": 3, "apply_rotary_pos_emb": 1},
}


@pytest.mark.parametrize("name", REPLACED)
def test_the_kernels_train_as_without(tmp_path: Path, name: str) -> None:
    command = [
        sys.executable,
        str(Path(__file__).with_name("liger_process.py")),
        name,
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == REPLACED[name]
    start, plain, liger = (
        load_file(tmp_path / one / "model.safetensors")
        for one in ("plain/start", "plain/model", "liger/model")
    )
    assert start.keys() == plain.keys() == liger.keys()
    moved = torch.cat([(plain[key] - start[key]).flatten() for key in plain]).norm()
    apart = torch.cat([(plain[key] - liger[key]).flatten() for key in plain]).norm()
    assert moved > 0.1 and apart < 0.002 * moved, (moved, apart)
    before, after = (read_jsonl(tmp_path / one / "metrics.jsonl") for one in ("plain", "liger"))
    for expected, record in zip(before, after, strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


def test_a_class_that_liger_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(RoboAlignError, match="no kernels for models of type llava_onevision"):
        train_sft(
            backbones.model_of("llava_onevision"),
            backbones.conversations("think"),
            SftConfig(liger=True, batch_size=2, micro_batch_size=2),
            tmp_path,
        )
