"""One process of a training under torchrun: sft_process.py FOLDER WORLD [SETTING=VALUE ...]."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed
from test_align_sft import CONFIG, talks, tiny

from roboalign.align import sft
from roboalign.align.sft import SftConfig, SftTrainer, train_sft
from roboalign.conversations.conversation import Conversation


def uneven(n: int) -> list[Conversation]:
    """Talks whose answers differ in length, so that a mean of the processes' means is not the mean over all tokens."""
    found = []
    for i, talk in enumerate(talks(n)):
        answer = "<answer>" + " ".join(["gripper"] * (1 + 7 * i % 12)) + "</answer>"
        found.append(replace(talk, turns=(replace(talk.turns[0], answer=answer),)))
    return found


class Wrapped(SftTrainer):
    """Refuses to train where torchrun's processes do not form one group, or the model is not wrapped for it."""

    def training_step(self, model, *arguments):  # type: ignore[no-untyped-def]
        world = int(sys.argv[2])
        assert self.args.world_size == torch.distributed.get_world_size() == world
        assert isinstance(model, torch.nn.parallel.DistributedDataParallel)
        if os.environ.get("STOP_AT") == str(self.state.global_step):
            os._exit(9)  # as a kill would: nothing is written, no one is told
        return super().training_step(model, *arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sft.SftTrainer = Wrapped  # type: ignore[misc]
    given = {name: int(value) for name, value in (text.split("=") for text in sys.argv[3:])}
    settings = SftConfig(**{**CONFIG, "micro_batch_size": 1, **given})
    train_sft(tiny(), uneven(12), settings, Path(sys.argv[1]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
