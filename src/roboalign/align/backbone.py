"""Settings of the MLLM that is aligned: where it comes from, and what it learns before it sees an
action token."""

from typing import Literal

from pydantic import Field, model_validator

from roboalign.align.sft import ConnectorConfig, SftConfig
from roboalign.align.vision import VisionConfig
from roboalign.core.config import Config
from roboalign.mllm.rounding import Dtype
from roboalign.mllm.tiny import TinyConfig


class BackboneConfig(Config):
    """The pretrained MLLM that is aligned."""

    source: str = "builtin"
    """`builtin` (the tiny model that ships with the package), `train` (pretrain it in this run on the language-only
    part of the mixture), or any Hugging Face image-text-to-text model: its folder, or its Hub id, for example
    `Qwen/Qwen2.5-VL-3B-Instruct` or `owner/name@revision`."""
    tiny: TinyConfig = TinyConfig()
    """Shape of the model that `train` builds."""
    vision: VisionConfig = VisionConfig()
    """How `train` pretrains its vision tower, on the bodies' positions."""
    pretrain: SftConfig = SftConfig()
    """How `train` then pretrains the whole model, on the language-only part of the mixture."""
    connector: ConnectorConfig | None = None
    """Of a folder's model of LLaVA's kind: train what leads from its vision encoder to its text model first, on the
    language-only part of the mixture; without it, the model is taken as it is."""
    action_start: Literal["mean", "labels"] = "mean"
    """How the embedding of <ACTION_START> begins: as the `mean` of all tokens, like those of the other action tokens,
    or as that of the words that answers open with (`labels`)."""
    layer: int = Field(2, ge=1, le=1000)
    """The head reads the hidden states after this layer (paper: 18 of 28 for the 7B)."""
    final_norm: bool = False
    """Put these hidden states through the model's last norm, as GR00T-N1.5 does: it evens out channels that are far
    larger than the others. The topmost layer's always are."""
    layer_dtype: Dtype = "float16"
    """Type to which they are rounded, on disk and in serving alike; `float8`: half the size, one scale a token."""

    @model_validator(mode="after")
    def _consistent(self) -> "BackboneConfig":
        if self.connector is not None and self.source in ("builtin", "train"):
            raise ValueError(
                f"connector is for a model's folder, and source is `{self.source}`; leave it out"
            )
        return self
