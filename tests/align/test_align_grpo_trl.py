"""The loss and the advantages against TRL's GRPOTrainer, unmodified, on one batch of a tiny model with images."""

from pathlib import Path

import datasets
import pytest
import torch
import trl
from PIL import Image
from tiny_grpo import fast, prompts, tiny
from torch import Tensor

from roboalign.align.dataset import pictures
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.loss import group_advantages
from roboalign.align.grpo.rollout import Batch, batch_of, roll_out
from roboalign.align.grpo.train import build_grpo_trainer
from roboalign.mllm.load import save_mllm
from roboalign.mllm.pixels import repeat_rows

SAMPLES = 3


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory: pytest.TempPathFactory) -> trl.GRPOTrainer:
    folder, mllm = tmp_path_factory.mktemp("trl"), tiny()
    save_mllm(mllm, folder / "model")
    rows = [
        {
            "prompt": [{"role": "user", "content": c.turns[0].question}],
            "image": Image.fromarray(pictures(c)[0]),
        }
        for c in prompts(2)
    ]
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2 * SAMPLES,
        num_generations=SAMPLES,
        beta=0.05,
        epsilon=0.2,
        epsilon_high=0.3,
        delta=3.0,
        loss_type="dapo",
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        use_bias_correction_kl=False,  # TRL's default weighs the KL term by the ratio; EasyR1 does not
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )
    return trl.GRPOTrainer(
        str(folder / "model"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        processing_class=mllm.processor,
        train_dataset=datasets.Dataset.from_list(rows),
    )


def batch_and_reference() -> tuple[Batch, Tensor]:
    """A rollout whose policy has since moved: ratios and KL far from trivial, advantages of both signs.

    No token's KL estimate exceeds 10, where grpo_math clamps it as EasyR1 does and TRL does not.
    """
    rolled = roll_out(
        tiny(),
        fast(),
        prompts(2),
        samples=SAMPLES,
        max_new_tokens=8,
        temperature=1.0,
        preset="paper",
        seed=0,
    )
    batch = batch_of(tiny(), rolled, 0, 2)
    torch.manual_seed(0)
    old = batch.old_logp + 0.8 * torch.randn_like(batch.old_logp)
    advantages = group_advantages(torch.tensor([0.0, 0.5, 1.0, 0.2, 0.2, 0.9]), SAMPLES)
    batch = Batch(batch.prompts, batch.images, batch.completions, batch.mask, old, advantages)
    return batch, old + 0.2 * torch.randn_like(old)


def test_loss_and_gradient_are_trls(trl_trainer: trl.GRPOTrainer, tmp_path: Path) -> None:
    batch, reference = batch_and_reference()
    config = RlConfig(
        prompts_per_rollout=4,
        prompts_per_update=2,
        micro_batch_size=2,
        samples=SAMPLES,
        kl=0.05,
        updates=2,
    )
    ours = build_grpo_trainer(tiny(), fast(), prompts(2), (), config, tmp_path, [0, 1] * 2, 2, "rl")
    # The second update of a rollout: the policy has moved since it was sampled.
    ours.state.global_step = 1
    ours.batches, ours.update_tokens = {0: (batch, reference)}, {1: float(batch.mask.sum())}
    loss = ours.compute_loss(ours.model, {"number": torch.tensor(0)})
    loss.backward()

    inputs = repeat_rows(batch.prompts, batch.images, SAMPLES)
    kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(batch.completions)], dim=1)
    trl_trainer.model.train()
    trl_trainer.current_gradient_accumulation_steps = 1
    theirs = trl_trainer._compute_loss(
        trl_trainer.model,
        {
            "prompt_ids": inputs["input_ids"],
            "prompt_mask": inputs["attention_mask"],
            "completion_ids": batch.completions,
            "completion_mask": batch.mask,
            "advantages": batch.advantages,
            "old_per_token_logps": batch.old_logp,
            "ref_per_token_logps": reference,
            "num_items_in_batch": batch.mask.sum(),
            "num_images": [1] * 2 * SAMPLES,
            "mm_token_type_ids": kinds,
            "pixel_values": inputs["pixel_values"],
            "image_grid_thw": inputs["image_grid_thw"],
        },
    )
    theirs.backward()
    torch.testing.assert_close(loss, theirs, atol=1e-5, rtol=1e-4)
    parameters = dict(trl_trainer.model.named_parameters())
    compared = 0
    for name, parameter in ours.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, parameters[name].grad, atol=1e-4, rtol=1e-3)
            compared += 1
    assert compared > 20 and ours.step_metrics()["clipped"] > 0.1


def test_advantages_are_trls_up_to_its_larger_epsilon() -> None:
    """TRL adds 1e-4 to the deviation where EasyR1 adds 1e-6."""
    rewards = torch.tensor([0.0, 0.5, 1.0, 0.2, 0.2, 0.9])
    groups = rewards.view(-1, SAMPLES)
    trls = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, SAMPLES), trls.view(-1), atol=0, rtol=5e-4)
