"""Opening and saving a multimodal LLM as a plain Hugging Face folder."""

import copy
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen3VLProcessor,
    SmolVLMProcessor,
)

from roboalign.actions.vocabulary import ActionVocabulary
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, write_json


class ImageOnlyQwen2_5_VLProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its video half, which cannot be built where torchvision is not installed."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def to_dict(self) -> dict[str, Any]:
        """The stock class is named in the folder: other Hugging Face tools then open it."""
        return super().to_dict() | {"processor_class": "Qwen2_5_VLProcessor"}


class ImageOnlyQwen3VLProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor without its video half, which cannot be built where torchvision is not installed."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def to_dict(self) -> dict[str, Any]:
        """The stock class is named in the folder: other Hugging Face tools then open it."""
        return super().to_dict() | {"processor_class": "Qwen3VLProcessor"}


class ImageOnlySmolVLMProcessor(SmolVLMProcessor):
    """SmolVLM's processor without its video half, which wants torchvision, and num2words to spell a video's length."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_len: int = 169,
        chat_template: str | None = None,
        **_: Any,
    ) -> None:
        self.image_seq_len = image_seq_len
        self.fake_image_token = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
        self.global_image_token = getattr(tokenizer, "global_image_token", "<global-img>")
        self.image_token = getattr(tokenizer, "image_token", "<image>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        # The stock __init__ refuses to begin without num2words: its parent's is called in its place.
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
        """The stock one reads the video processor's settings first."""
        return ProcessorMixin.apply_chat_template(self, *arguments, **options)

    def to_dict(self) -> dict[str, Any]:
        """The stock class is named in the folder: other Hugging Face tools then open it."""
        return super().to_dict() | {"processor_class": "SmolVLMProcessor"}


class ImageOnlyLlavaOnevisionProcessor(LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor without its video half, which cannot be built where torchvision is not installed."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        vision_aspect_ratio: str = "anyres_max_9",
        **_: Any,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            num_image_tokens=num_image_tokens,
            chat_template=chat_template,
            vision_feature_select_strategy=vision_feature_select_strategy,
            vision_aspect_ratio=vision_aspect_ratio,
        )

    def to_dict(self) -> dict[str, Any]:
        """The stock class is named in the folder: other Hugging Face tools then open it."""
        return super().to_dict() | {"processor_class": "LlavaOnevisionProcessor"}


IMAGE_ONLY: dict[str, Any] = {
    "qwen2_5_vl": ImageOnlyQwen2_5_VLProcessor,
    "qwen3_vl": ImageOnlyQwen3VLProcessor,
    "smolvlm": ImageOnlySmolVLMProcessor,
    "llava_onevision": ImageOnlyLlavaOnevisionProcessor,
}
VIDEO_PROCESSORS = {
    "Qwen2_5_VLProcessor": "Qwen2VLVideoProcessor",
    "Qwen3VLProcessor": "Qwen3VLVideoProcessor",
    "SmolVLMProcessor": "SmolVLMVideoProcessor",
    "LlavaOnevisionProcessor": "LlavaOnevisionVideoProcessor",
}
"""The video half of stock processors that insist on one even where there are only images."""


@dataclass
class Mllm:
    """A multimodal LLM with its processor. `vocabulary` is set once the tokenizer has action tokens."""

    model: (
        Any  # a PreTrainedModel, and below a ProcessorMixin: what else they have differs by family
    )
    processor: Any
    vocabulary: ActionVocabulary | None = None
    folder: Path | None = None
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What encode.py and generate.py work out once for this model and tokenizer."""

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device


def load_mllm(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Mllm:
    """Open a Hugging Face folder of an image-text-to-text model, in eval mode. Nothing is fetched.

    Raises RoboAlignError where the folder is missing, is no such model, or lacks weights (which Hugging Face would
    fill with random numbers).
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        fix = "give the folder of a Hugging Face model (config.json, *.safetensors, tokenizer and processor files)"
        raise RoboAlignError(
            "no model here: config.json does not exist", where=str(folder), fix=fix
        )
    try:
        processor = load_processor(folder)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        model, info = loaded
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        fix = "check that the folder is complete and holds an image-text-to-text model; save it again if a file is cut"
        raise RoboAlignError(
            f"cannot be opened as a multimodal LLM ({error})", where=str(folder), fix=fix
        ) from error
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        fix = "save the whole model into the folder"
        raise RoboAlignError(
            f"{len(info['missing_keys'])} weights are missing ({names}, ...)",
            where=str(folder),
            fix=fix,
        )
    return Mllm(model.to(device).eval(), processor, find_vocabulary(processor.tokenizer), folder)


def load_processor(folder: str | Path) -> ProcessorMixin:
    """The folder's processor with the PIL image backend, so that pixels do not depend on what else is installed."""
    model_type = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if model_type not in IMAGE_ONLY:
        return AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    image_processor = AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, backend="pil"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    kind = IMAGE_ONLY[model_type]
    stored, _ = kind.get_processor_dict(folder, local_files_only=True)
    # The folder's own settings of the processor: tokens an image, which layer is read, how images are cut.
    settings = {
        name: stored[name] for name in inspect.signature(kind.__init__).parameters if name in stored
    }
    settings = {
        name: value for name, value in settings.items() if name not in kind.get_attributes()
    }
    return kind(image_processor, tokenizer, **settings | {"chat_template": tokenizer.chat_template})


def find_vocabulary(tokenizer: PreTrainedTokenizerBase) -> ActionVocabulary | None:
    """The action vocabulary that the tokenizer's added tokens `<FAST_i>` spell; None where there are none."""
    n_fast = sum(bool(re.fullmatch(r"<FAST_\d+>", token)) for token in tokenizer.get_added_vocab())
    return ActionVocabulary.from_tokenizer(tokenizer, n_fast) if n_fast else None


def save_mllm(mllm: Mllm, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write model (safetensors), tokenizer and processor into `folder`, complete or not at all.

    `dtype` casts the stored weights (half the size at 16 bits); the model in memory keeps its own.
    """
    model = mllm.model if dtype in (None, mllm.model.dtype) else copy.deepcopy(mllm.model).to(dtype)
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        save_processor(mllm.processor, temporary)


def save_processor(processor: Any, folder: str | Path) -> None:
    """Write a processor with its tokenizer into `folder`, so that stock tools (vLLM, verl) can open it too."""
    processor.save_pretrained(folder)
    for name, settings in stock_files(processor).items():
        write_json(Path(folder) / name, settings)


def stock_files(processor: Any) -> dict[str, dict[str, Any]]:
    """Name -> contents of the files that other tools need to open a folder; {} where `save_pretrained` is enough.

    Here such a model has no video half, and `save_pretrained` writes no settings of one; the stock processors insist on
    them. The settings of the image half in a file of their own are where transformers before 5 looks for them.
    """
    stock = type(processor).__name__.removeprefix("ImageOnly")
    if stock not in VIDEO_PROCESSORS:
        return {}
    image = processor.image_processor.to_dict()
    image["image_processor_type"] = image["image_processor_type"].removesuffix("Pil")
    same = [
        "patch_size",
        "merge_size",
        "temporal_patch_size",
        "max_image_size",
        "image_mean",
        "image_std",
    ]
    if not stock.startswith("Qwen"):  # whose two halves give `size` two meanings
        same.append("size")
    video = {
        "video_processor_type": VIDEO_PROCESSORS[stock],
        **{name: image[name] for name in same if name in image},
    }
    return {
        "preprocessor_config.json": {**image, "processor_class": stock},
        "video_preprocessor_config.json": {**video, "processor_class": stock},
    }
