import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.core.errors import RoboAlignError
from roboalign.vla.dit import Attention, DiT, SelfAttentionBlock, sinusoid
from roboalign.vla.head import HEAD_PRESETS, FlowMatchingHead, HeadConfig, HeadShape, flow_times

SHAPE = HeadShape(vlm_width=24, action_dim=4, state_dim=3, horizon=5)


def small(**changes) -> HeadConfig:
    return HeadConfig(
        **({"width": 32, "heads": 2, "layers": 3, "vlm_inner_width": 32, "vlm_heads": 2} | changes)
    )


def make(seed: int = 0, **changes) -> FlowMatchingHead:
    torch.manual_seed(seed)
    return FlowMatchingHead(small(**changes), SHAPE).eval()


def inputs(batch: int = 3, length: int = 6) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "vlm": torch.randn(batch, length, 24),
        "vlm_mask": torch.ones(batch, length, dtype=torch.bool),
        "actions": torch.randn(batch, 5, 4),
        "noise": torch.randn(batch, 5, 4),
        "t": torch.rand(batch),
    }


def test_published_parameter_counts():
    # GR00T-N1.5 prints both counts when it starts: 550386688 (DiT) and 201433088 (4 blocks of width 2048).
    p = HEAD_PRESETS["gr00t-n1.5"]
    with torch.device("meta"):
        dit = DiT(
            p["width"],
            p["vlm_inner_width"],
            p["hidden_width"],
            p["layers"],
            p["heads"],
            p["dropout"],
        )
        width, heads = p["vlm_inner_width"], p["vlm_heads"]
        blocks = [
            SelfAttentionBlock(width, heads, width // heads, 0.2) for _ in range(p["vlm_layers"])
        ]
    assert sum(x.numel() for x in dit.parameters()) == 550_386_688
    assert sum(x.numel() for block in blocks for x in block.parameters()) == 201_433_088


def test_loss_is_the_squared_error_of_the_velocity():
    head, batch = make(), inputs()
    tokens, mask = head.encode_vlm(batch["vlm"], batch["vlm_mask"])
    t = batch["t"][:, None, None].numpy()
    noisy = (1 - t) * batch["noise"].numpy() + t * batch["actions"].numpy()
    predicted = head.velocity(
        torch.from_numpy(noisy), batch["t"], None, head.dit.project(tokens), mask
    )
    error = (predicted.detach().numpy() - (batch["actions"] - batch["noise"]).numpy()) ** 2
    assert head.loss(state=None, **batch).item() == pytest.approx(error.mean(), rel=1e-5)
    action_mask = torch.ones(3, 5, 4, dtype=torch.bool)
    action_mask[1, 3:] = False
    masked = head.loss(state=None, action_mask=action_mask, **batch).item()
    assert masked == pytest.approx(error[action_mask.numpy()].mean(), rel=1e-5)


def test_loss_falls_to_zero_for_the_exact_velocity(monkeypatch):
    head, batch = make(), inputs()
    monkeypatch.setattr(head, "velocity", lambda *args: batch["actions"] - batch["noise"])
    assert head.loss(state=None, **batch).item() == 0


def test_draws_of_one_frame_give_the_mean_of_their_losses():
    head, batch = make(), inputs()
    noise, t = torch.randn(6, 5, 4), torch.rand(6)
    together = head.loss(state=None, **batch | {"noise": noise, "t": t})
    apart = [
        head.loss(state=None, **batch | {"noise": noise[k::2], "t": t[k::2]}) for k in range(2)
    ]
    assert together.item() == pytest.approx((sum(apart) / 2).item(), rel=1e-5)


def test_flow_times_follow_the_shifted_beta():
    t = flow_times(200_000, torch.Generator().manual_seed(0)).numpy()
    s = 0.999 * (1 - t)
    # Beta(1.5, 1): mean 3/5, variance 1.5 / (2.5^2 * 3.5).
    assert s.mean() == pytest.approx(0.6, abs=0.003)
    assert s.var() == pytest.approx(1.5 / (2.5**2 * 3.5), abs=0.001)
    assert t.min() >= 0 and t.max() < 1
    assert np.mean(s < 0.5) == pytest.approx(
        0.5**1.5, abs=0.005
    )  # the distribution function at 0.5


@settings(max_examples=15, deadline=None)
@given(padding=st.integers(1, 5), seed=st.integers(0, 1000))
def test_padding_changes_nothing(padding, seed):
    head, batch = make(), inputs()
    rubbish = torch.randn(3, padding, 24, generator=torch.Generator().manual_seed(seed)) * 100
    longer = torch.cat([batch["vlm"], rubbish], dim=1)
    mask = torch.cat([batch["vlm_mask"], torch.zeros(3, padding, dtype=torch.bool)], dim=1)
    short = head.sample(batch["vlm"], batch["vlm_mask"], None, batch["noise"])
    torch.testing.assert_close(
        head.sample(longer, mask, None, batch["noise"]), short, atol=1e-5, rtol=1e-5
    )
    # Not by ignoring the tokens altogether: with the mask lifted the result moves.
    unmasked = head.sample(longer, torch.ones_like(mask), None, batch["noise"])
    assert (unmasked - short).abs().max() > 1e-3


def test_even_blocks_read_the_vlm_tokens_and_odd_ones_the_sequence():
    head, batch = make(layers=4), inputs()
    assert [block.cross for block in head.dit.blocks] == [True, False, True, False]
    tokens, mask = head.encode_vlm(batch["vlm"], batch["vlm_mask"])
    context = head.dit.project(tokens)
    assert [one is None for one in context] == [False, True, False, True]
    condition, x = torch.randn(3, 32), torch.randn(3, 7, 32)
    changed = x.clone()
    changed[:, 0] += torch.randn(32)
    for block, one in zip(head.dit.blocks, context, strict=True):
        visible = mask if block.cross else None
        difference = block(x, condition, one, visible) - block(changed, condition, one, visible)
        # One position's input reaches the others only through self-attention.
        reaches = difference[:, 1:].abs().max() > 1e-6
        assert reaches == (not block.cross)


def test_time_modulates_only_the_first_norm_of_a_block():
    block = make().dit.blocks[0]
    x, condition = torch.randn(2, 7, 32), torch.randn(2, 32)
    scale, shift = block.norm.modulation(torch.nn.functional.silu(condition)).chunk(2, dim=-1)
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(
        block.norm(x, condition), plain * (1 + scale[:, None]) + shift[:, None]
    )
    assert [name for name, _ in block.named_modules() if "modulation" in name] == [
        "norm.modulation"
    ]


def test_time_is_bucketed_into_thousandths():
    head, batch = make(), inputs()
    tokens, mask = head.encode_vlm(batch["vlm"], batch["vlm_mask"])
    context = head.dit.project(tokens)
    at = [
        head.velocity(batch["noise"], torch.full((3,), t), None, context, mask)
        for t in (0.5001, 0.5009, 0.5011)
    ]
    assert torch.equal(at[0], at[1])
    assert not torch.allclose(at[0], at[2], atol=1e-7)


def test_sinusoid_by_hand():
    expected = [np.sin(3), np.sin(3 / 100), np.cos(3), np.cos(3 / 100)]
    np.testing.assert_allclose(sinusoid(torch.tensor([3]), 4)[0], expected, rtol=1e-5)


def test_sample_is_euler_from_the_given_noise(monkeypatch):
    head, batch = make(), inputs()
    seen = []

    def velocity(actions, t, *rest):
        seen.append(t[0].item())
        return 2 * actions

    monkeypatch.setattr(head, "velocity", velocity)
    result = head.sample(batch["vlm"], batch["vlm_mask"], None, batch["noise"], steps=4)
    assert seen == [0, 0.25, 0.5, 0.75]
    torch.testing.assert_close(result, batch["noise"] * 1.5**4)


def test_a_sample_does_not_depend_on_its_batch():
    head, batch = make(), inputs()
    together = head.sample(batch["vlm"], batch["vlm_mask"], None, batch["noise"])
    assert together.shape == (3, 5, 4)
    for row in range(3):
        alone = head.sample(
            batch["vlm"][row : row + 1],
            batch["vlm_mask"][row : row + 1],
            None,
            batch["noise"][row : row + 1],
        )
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def test_state_is_required_exactly_with_proprioception():
    batch, state = inputs(), torch.randn(3, 3)
    blind_to_state, seeing = make(), make(proprioception=True)
    with pytest.raises(RoboAlignError, match="no proprioception"):
        blind_to_state.loss(state=state, **batch)
    with pytest.raises(RoboAlignError, match="needs a state"):
        seeing.loss(state=None, **batch)
    assert seeing.loss(state=state, **batch).item() != seeing.loss(state=state + 1, **batch).item()


def test_config_takes_the_preset_and_refuses_heads_that_do_not_divide():
    config = HeadConfig(preset="gr00t-n1.5", layers=2)
    assert (config.width, config.layers, config.future_tokens) == (1536, 2, 32)
    assert HeadConfig.model_validate(config.model_dump()) == config
    with pytest.raises(ValueError, match="not a multiple of heads"):
        HeadConfig(width=100, heads=3)


def test_head_overfits_a_few_samples():
    head, batch = make(dropout=0.0, layers=2, future_tokens=2), inputs(batch=4)
    vlm, mask, actions = batch["vlm"], batch["vlm_mask"], batch["actions"].clamp(-1, 1)
    optimizer = torch.optim.AdamW(head.train().parameters(), 2e-3, fused=True)
    torch.manual_seed(0)
    for _ in range(220):
        head.loss(
            vlm, mask, None, actions, noise=torch.randn(16, 5, 4), t=flow_times(16)
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    sampled = head.eval().sample(vlm, mask, None, torch.randn(4, 5, 4))
    assert (sampled - actions).abs().mean() < 0.15
    # Each sample found its own actions, so they were read from its VLM tokens.
    assert (sampled.roll(1, dims=0) - actions).abs().mean() > 0.3


def test_attention_drops_twice_as_in_gr00t():
    # 1 - 0.8 * 0.8 = 36% of the outputs are zero in training; the others are scaled by 1 / 0.64.
    torch.manual_seed(0)
    attention = Attention(64, 64, heads=2, head_dim=32, dropout=0.2).train()
    with torch.no_grad():
        attention.out.weight.zero_()
        attention.out.bias.fill_(1.0)
    x = torch.randn(64, 32, 64)
    out = attention(x, attention.project(x))
    assert (out == 0).float().mean().item() == pytest.approx(0.36, abs=0.01)
    torch.testing.assert_close(out[out != 0].unique(), torch.tensor([1 / 0.64]))
