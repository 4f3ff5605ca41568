"""A GR00T-N1.5 head's tensors load into ours and compute what a plain re-computation from those tensors computes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from roboalign.core.errors import RoboAlignError
from roboalign.vla.dit import timestep_features
from roboalign.vla.gr00t import gr00t_head
from roboalign.vla.head import HeadConfig, HeadShape

WIDTH, INNER, HIDDEN, HEADS, LAYERS, VLM_LAYERS, VLM_HEADS = 24, 16, 12, 2, 4, 2, 2
FUTURE, EMBODIMENTS, PADDED_ACTION, PADDED_STATE, LONGEST = 3, 4, 8, 10, 9
SHAPE = HeadShape(vlm_width=INNER, action_dim=5, state_dim=6, horizon=7)
CONFIG = HeadConfig(
    width=WIDTH,
    layers=LAYERS,
    heads=HEADS,
    hidden_width=HIDDEN,
    future_tokens=FUTURE,
    vlm_layers=VLM_LAYERS,
    vlm_heads=VLM_HEADS,
    vlm_inner_width=INNER,
    proprioception=True,
)


def linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def block_shapes(name: str, width: int, context: int, *, ada: bool) -> dict[str, tuple[int, ...]]:
    shapes = {
        **linear_shapes(f"{name}.attn1.to_q", width, width),
        **linear_shapes(f"{name}.attn1.to_k", context, width),
        **linear_shapes(f"{name}.attn1.to_v", context, width),
        **linear_shapes(f"{name}.attn1.to_out.0", width, width),
        **linear_shapes(f"{name}.ff.net.0.proj", width, 4 * width),
        **linear_shapes(f"{name}.ff.net.2", 4 * width, width),
    }
    if ada:
        return shapes | linear_shapes(f"{name}.norm1.linear", width, 2 * width)
    norms = {
        f"{name}.{norm}.{kind}": (width,)
        for norm in ("norm1", "norm3")
        for kind in ("weight", "bias")
    }
    return shapes | norms


def made_tensors() -> dict[str, torch.Tensor]:
    """Random tensors with N1.5's names; shapes are those of N1.5 at these widths."""
    shapes: dict[str, tuple[int, ...]] = {
        "future_tokens.weight": (FUTURE, WIDTH),
        "position_embedding.weight": (LONGEST, WIDTH),
        "vlln.weight": (INNER,),
        "vlln.bias": (INNER,),
    }
    time = "model.timestep_encoder.timestep_embedder"
    shapes |= linear_shapes(f"{time}.linear_1", 256, WIDTH)
    shapes |= linear_shapes(f"{time}.linear_2", WIDTH, WIDTH)
    shapes |= linear_shapes("model.proj_out_1", WIDTH, 2 * WIDTH)
    shapes |= linear_shapes("model.proj_out_2", WIDTH, HIDDEN)
    for name, inputs, outputs in (
        ("state_encoder.layer1", PADDED_STATE, HIDDEN),
        ("state_encoder.layer2", HIDDEN, WIDTH),
        ("action_encoder.W1", PADDED_ACTION, WIDTH),
        ("action_encoder.W2", 2 * WIDTH, WIDTH),
        ("action_encoder.W3", WIDTH, WIDTH),
        ("action_decoder.layer1", HIDDEN, HIDDEN),
        ("action_decoder.layer2", HIDDEN, PADDED_ACTION),
    ):
        shapes |= {
            f"{name}.W": (EMBODIMENTS, inputs, outputs),
            f"{name}.b": (EMBODIMENTS, outputs),
        }
    for index in range(VLM_LAYERS):
        name = f"vl_self_attention.transformer_blocks.{index}"
        shapes |= block_shapes(name, INNER, INNER, ada=False)
    for index in range(LAYERS):
        name = f"model.transformer_blocks.{index}"
        shapes |= block_shapes(name, WIDTH, INNER if index % 2 == 0 else WIDTH, ada=True)
    generator = torch.Generator().manual_seed(0)
    return {
        f"action_head.{name}": 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


class Plain:
    """The head's velocity, written out from the named tensors with plain matrix products."""

    def __init__(self, tensors: dict[str, torch.Tensor], embodiment: int) -> None:
        self.t = {name.removeprefix("action_head."): value for name, value in tensors.items()}
        self.embodiment = embodiment

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.t[f"{name}.weight"].T + self.t[f"{name}.bias"]

    def own(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.t[f"{name}.W"][self.embodiment] + self.t[f"{name}.b"][self.embodiment]

    def norm(self, x: torch.Tensor, eps: float, name: str = "") -> torch.Tensor:
        centered = x - x.mean(-1, keepdim=True)
        x = centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * self.t[f"{name}.weight"] + self.t[f"{name}.bias"] if name else x

    def attention(self, name, x, context, heads, mask=None):
        query, key, value = (
            self.linear(f"{name}.{part}", source).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, source in (("to_q", x), ("to_k", context), ("to_v", context))
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self.linear(f"{name}.to_out.0", mixed)

    def feed_forward(self, name, x):
        x = self.linear(f"{name}.ff.net.0.proj", x)
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return self.linear(f"{name}.ff.net.2", x)

    def velocity(self, vlm, mask, noisy, bucket, state):
        vlm = self.norm(vlm, 1e-5, "vlln")
        for index in range(VLM_LAYERS):
            name = f"vl_self_attention.transformer_blocks.{index}"
            normed = self.norm(vlm, 1e-5, f"{name}.norm1")
            vlm = vlm + self.attention(f"{name}.attn1", normed, normed, VLM_HEADS, mask)
            vlm = vlm + self.feed_forward(name, self.norm(vlm, 1e-5, f"{name}.norm3"))
        # Actions and states are padded with zeros, as N1.5 pads them.
        padded = F.pad(noisy, (0, PADDED_ACTION - noisy.shape[-1]))
        half = WIDTH // 2
        angle = bucket[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        time = torch.cat([angle.sin(), angle.cos()], -1)[:, None].expand(-1, noisy.shape[1], -1)
        mixed = torch.cat([self.own("action_encoder.W1", padded), time], -1)
        mixed = self.own("action_encoder.W2", mixed)
        actions = self.own("action_encoder.W3", mixed * mixed.sigmoid())
        actions = actions + self.t["position_embedding.weight"][: noisy.shape[1]]
        state = F.pad(state, (0, PADDED_STATE - state.shape[-1]))
        encoded = self.own("state_encoder.layer2", self.own("state_encoder.layer1", state).relu())
        future = self.t["future_tokens.weight"].expand(len(noisy), -1, -1)
        x = torch.cat([encoded[:, None], future, actions], 1)
        angle = bucket[:, None] * 10_000.0 ** (-torch.arange(128) / 127)
        features = torch.cat([angle.cos(), angle.sin()], -1)
        embedder = "model.timestep_encoder.timestep_embedder"
        condition = self.linear(f"{embedder}.linear_1", features)
        condition = self.linear(f"{embedder}.linear_2", condition * condition.sigmoid())
        active = condition * condition.sigmoid()
        for index in range(LAYERS):
            name = f"model.transformer_blocks.{index}"
            scale, shift = self.linear(f"{name}.norm1.linear", active)[:, None].chunk(2, -1)
            normed = self.norm(x, 1e-5) * (1 + scale) + shift
            context, visible = (vlm, mask) if index % 2 == 0 else (normed, None)
            x = x + self.attention(f"{name}.attn1", normed, context, HEADS, visible)
            x = x + self.feed_forward(name, self.norm(x, 1e-5))
        shift, scale = self.linear("model.proj_out_1", active)[:, None].chunk(2, -1)
        x = self.linear("model.proj_out_2", self.norm(x, 1e-6) * (1 + scale) + shift)
        decoded = self.own("action_decoder.layer1", x).relu()
        return self.own("action_decoder.layer2", decoded)[:, -noisy.shape[1] :, : noisy.shape[2]]


def test_a_published_head_computes_the_same_here():
    tensors = made_tensors()
    head = gr00t_head(tensors, CONFIG, SHAPE, embodiment=2).eval()
    torch.manual_seed(1)
    vlm, mask = torch.randn(3, 6, INNER), torch.ones(3, 6, dtype=torch.bool)
    mask[1, 4:] = False
    noisy, state, t = torch.randn(3, 7, 5), torch.randn(3, 6), torch.tensor([0.0, 0.25, 0.7501])
    tokens, visible = head.encode_vlm(vlm, mask)
    with torch.no_grad():
        ours = head.velocity(noisy, t, state, head.dit.project(tokens), visible)
        plain = Plain(tensors, 2).velocity(vlm, mask, noisy, torch.tensor([0, 250, 750]), state)
    torch.testing.assert_close(ours, plain, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("action_head.vlln.bias"), "there is no tensor vlln.bias"),
        (lambda t: t.update({"action_head.extra": torch.zeros(1)}), "extra"),
        (lambda t: t.update({"action_head.vlln.bias": torch.zeros(3)}), r"vlm_norm.bias is \[16\]"),
    ],
)
def test_a_head_of_another_kind_is_refused(change, says):
    tensors = made_tensors()
    change(tensors)
    with pytest.raises(RoboAlignError, match=says):
        gr00t_head(tensors, CONFIG, SHAPE, embodiment=0)


def test_an_embodiment_that_is_not_there_is_refused():
    with pytest.raises(RoboAlignError, match="embodiment 4 is not one of 0 to 3"):
        gr00t_head(made_tensors(), CONFIG, SHAPE, embodiment=4)


def test_time_features_are_those_of_the_dit():
    # diffusers' Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=1): cosines first, spacing 1 / 127.
    features = timestep_features(torch.tensor([250])).numpy()[0]
    frequencies = np.exp(-np.log(10_000) * np.arange(128) / 127)
    np.testing.assert_allclose(features[:128], np.cos(250 * frequencies), atol=2e-5)
    np.testing.assert_allclose(features[128:], np.sin(250 * frequencies), atol=2e-5)
    assert frequencies[-1] == pytest.approx(1e-4)
