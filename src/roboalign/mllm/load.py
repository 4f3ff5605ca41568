"""Open and save a multimodal LLM as a plain Hugging Face folder."""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerBase

from roboalign.actions.vocabulary import ActionVocabulary
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path
from roboalign.mllm.model_folder import TRUSTED, check_model_folder, opened
from roboalign.mllm.processors import load_processor, save_processor


@dataclass
class Mllm:
    """Hold a multimodal LLM with its processor. `vocabulary` is set once the tokenizer has action
    tokens."""

    model: (
        # a PreTrainedModel, and below a ProcessorMixin: their other attributes differ by family
        Any
    )
    processor: Any
    vocabulary: ActionVocabulary | None = None
    folder: Path | None = None
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What encode.py and generate.py compute once for this model and tokenizer."""

    @property
    def prompts(self) -> str | None:
        """Name of the prompt style that the model is trained in; it is saved in config.json.

        None for a model that has no action tokens and names none: it may be trained in any. A model
        with action tokens that names none is of the default style.
        """
        return getattr(self.model.config, "prompt_style", None)

    @prompts.setter
    def prompts(self, name: str) -> None:
        self.model.config.prompt_style = name

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device


def load_mllm(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Mllm:
    """Open a Hugging Face folder of an image-text-to-text model, in eval mode.

    Nothing is downloaded, no code of the folder runs, and weights are read from safetensors only.
    Raises RoboAlignError if the folder is missing, is no such model, has a damaged file, or lacks
    weights (which Hugging Face would fill with random numbers).
    """
    folder = Path(folder)
    check_model_folder(folder)
    processor = load_processor(folder)
    with opened(folder, "config.json or the weights"):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, use_safetensors=True, **TRUSTED
        )
    model, info = loaded
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise RoboAlignError(
            f"{len(info['missing_keys'])} weights are missing ({names}, ...)",
            where=str(folder),
            fix="save the whole model into the folder",
        )
    return Mllm(model.to(device).eval(), processor, find_vocabulary(processor.tokenizer), folder)


def find_vocabulary(tokenizer: PreTrainedTokenizerBase) -> ActionVocabulary | None:
    """Return the action vocabulary that the tokenizer's added tokens `<FAST_i>` spell; None if
    there are none."""
    n_fast = sum(bool(re.fullmatch(r"<FAST_\d+>", token)) for token in tokenizer.get_added_vocab())
    return ActionVocabulary.from_tokenizer(tokenizer, n_fast) if n_fast else None


def save_mllm(mllm: Mllm, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write model (safetensors), tokenizer and processor into `folder`, atomically.

    `dtype` casts the stored weights (half the size at 16 bits); the model in memory keeps its own.
    """
    model = mllm.model if dtype in (None, mllm.model.dtype) else copy.deepcopy(mllm.model).to(dtype)
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        save_processor(mllm.processor, temporary)
