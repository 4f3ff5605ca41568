"""SFT of a small model without and with Liger's kernels, in Triton's interpreter: liger_process.py CLASS FOLDER.

A process of its own, as Liger replaces functions of transformers for good. Prints what was replaced, as JSON.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined
import numpy as np
import torch
import triton.language as tl
from liger_kernel.ops import layer_norm, rms_norm
from triton.runtime import interpreter

from roboalign.align.sft import SftConfig, train_sft
from roboalign.mllm.load import save_mllm
from tools import backbones


def complete_the_interpreter() -> None:
    """What Triton 3.9's interpreter lacks for these kernels: arguments that are floats, and CUDA's own rsqrt."""
    converted = interpreter._implicit_cvt

    def convert(value: object) -> object:
        if isinstance(value, float):
            return tl.tensor(
                interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32
            )
        return converted(value)

    interpreter._implicit_cvt = convert
    rms_norm.rsqrt = layer_norm.rsqrt = lambda value: tl.rsqrt(value)


def train(name: str, folder: Path, liger: bool) -> torch.nn.Module:
    mllm = backbones.model_of(name)
    save_mllm(mllm, folder / "start")
    config = SftConfig(
        learning_rate=1e-3,
        max_steps=2,
        batch_size=2,
        micro_batch_size=2,
        log_every=1,
        freeze_vision=False,
        liger=liger,
    )
    train_sft(mllm, backbones.conversations("think"), config, folder)
    return mllm.model


def replaced(model: torch.nn.Module) -> dict[str, int]:
    """How many modules compute with each of Liger's layers, and which rotary functions of the model's files are its."""
    count = Counter(
        forward.__func__.__qualname__.removesuffix(".forward")
        for module in model.modules()
        if (forward := module.forward).__func__.__module__.startswith("liger_kernel")
    )
    files = {type(module).__module__ for module in model.modules()}
    functions = [
        item for file in files for item in vars(sys.modules[file]).items() if "apply_" in item[0]
    ]
    rotary = {
        name
        for name, value in functions
        if "rotary" in name and value.__module__.startswith("liger_kernel")
    }
    return {**count, **dict.fromkeys(rotary, 1)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    complete_the_interpreter()
    name, folder = sys.argv[1], Path(sys.argv[2])
    assert not replaced(train(name, folder / "plain", liger=False))
    print(json.dumps(replaced(train(name, folder / "liger", liger=True))))
