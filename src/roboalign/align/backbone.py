"""Settings of the MLLM that is aligned: its source, and its training before it sees an action
token."""

from typing import Literal

from pydantic import Field, model_validator

from roboalign.align.sft import ConnectorConfig, SftConfig
from roboalign.align.vision import VisionConfig
from roboalign.core.config import Config
from roboalign.mllm.rounding import Dtype
from roboalign.mllm.tiny import TinyConfig


class ImagesConfig(Config):
    """Bounds of the pixels to which the processor of Qwen2.5-VL or Qwen3-VL resizes an image, in
    whole patches. They are saved with the model, so SFT, RL, the head and serving share them."""

    min_pixels: int | None = Field(None, ge=1)
    """Smaller images are enlarged to it. Default: the processor's own."""
    max_pixels: int | None = Field(None, ge=1)
    """Larger images are reduced to it: a pixel budget, and so one of tokens. Default: the
    processor's own, up to 16,384 tokens an image."""

    @model_validator(mode="after")
    def _ordered(self) -> "ImagesConfig":
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        return self


class BackboneConfig(Config):
    """The pretrained MLLM that is aligned."""

    source: str = "builtin"
    """`builtin` (the tiny model in this package), `train` (pretrain it in this run on the
    language-only part of the mixture), or any Hugging Face image-text-to-text model: its folder, or
    its Hub id, for example `Qwen/Qwen2.5-VL-3B-Instruct` or `owner/name@revision`."""
    tiny: TinyConfig = TinyConfig()
    """Sizes of the model that `train` builds."""
    vision: VisionConfig = VisionConfig()
    """How `train` pretrains its vision tower, on the positions of bodies."""
    pretrain: SftConfig = SftConfig()
    """How `train` then pretrains the complete model, on the language-only part of the mixture."""
    connector: ConnectorConfig | None = None
    """For a folder with a model of LLaVA's kind: first train the connector from its vision encoder
    to its text model, on the language-only part of the mixture. Without it, the model is used
    unchanged."""
    images: ImagesConfig = ImagesConfig()
    """How many pixels of an image the model sees."""
    action_start: Literal["mean", "labels"] = "mean"
    """Initial embedding of <ACTION_START>: the `mean` of all tokens, as for the other action
    tokens, or the mean of the words that open answers (`labels`)."""
    layer: int = Field(2, ge=1, le=1000)
    """The head reads the hidden states after this layer (paper: 18 of 28 for the 7B)."""
    final_norm: bool = False
    """Apply the model's last norm to these hidden states, as GR00T-N1.5 does: it evens out channels
    that are far larger than the others. The states of the topmost layer always have it."""
    layer_dtype: Dtype = "float16"
    """Type to which they are rounded, on disk and in serving; `float8`: half the size, one scale
    per token."""
    reading: Literal["direct", "think", "reasoned"] = "direct"
    """What the head reads: the direct question, the one in think mode, or that one and the reasoning
    that the model then writes before each decision (docs/how-to/choose-what-the-head-reads.md)."""
    max_reasoning_tokens: int = Field(128, ge=1, le=1_000_000)
    """Tokens after which the reasoning of `reasoned` is closed."""
    cameras_as: Literal["images", "side_by_side"] = "images"
    """How several cameras of the head are shown: each as an image of its own, in the order of
    `collect.head_cameras`, or `side_by_side` in one image, for models that take one."""

    @model_validator(mode="after")
    def _consistent(self) -> "BackboneConfig":
        if self.connector is not None and self.source in ("builtin", "train"):
            raise ValueError(
                f"connector is for a model's folder, and source is `{self.source}`; leave it out"
            )
        return self
