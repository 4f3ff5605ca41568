"""Load a folder's processor with the PIL image backend and without a video half, and save it for
stock tools."""

import inspect
from pathlib import Path
from typing import Any

from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    LlavaOnevisionProcessor,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen3VLProcessor,
    SmolVLMProcessor,
)

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json
from roboalign.mllm.model_folder import TRUSTED, config_of, opened, read_settings


class ImageOnlyQwen2_5_VLProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its video half, which needs torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def to_dict(self) -> dict[str, Any]:
        """Write the name of the stock class, so that other Hugging Face tools can open the
        folder."""
        return super().to_dict() | {"processor_class": "Qwen2_5_VLProcessor"}


class ImageOnlyQwen3VLProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor without its video half, which needs torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def to_dict(self) -> dict[str, Any]:
        """Write the name of the stock class, so that other Hugging Face tools can open the
        folder."""
        return super().to_dict() | {"processor_class": "Qwen3VLProcessor"}


class ImageOnlySmolVLMProcessor(SmolVLMProcessor):
    """SmolVLM's processor without its video half, which needs torchvision, and num2words to spell a
    video's length."""

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
        # The stock __init__ refuses to start without num2words, so its parent's is called instead.
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
        """Apply the chat template without the stock method's first step, which reads the video
        processor's settings."""
        return ProcessorMixin.apply_chat_template(self, *arguments, **options)

    def to_dict(self) -> dict[str, Any]:
        """Write the name of the stock class, so that other Hugging Face tools can open the
        folder."""
        return super().to_dict() | {"processor_class": "SmolVLMProcessor"}


class ImageOnlyLlavaOnevisionProcessor(LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor without its video half, which needs torchvision."""

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
        """Write the name of the stock class, so that other Hugging Face tools can open the
        folder."""
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
"""The video half of stock processors that require one even if there are only images."""


def load_processor(folder: str | Path) -> ProcessorMixin:
    """Load the folder's processor with the PIL image backend, so that pixels do not depend on what
    else is installed.

    Raises RoboAlignError if a file cannot be read, or there is no chat template or no token to pad
    with.
    """
    folder = Path(folder)
    model_type = config_of(folder).model_type
    if model_type in IMAGE_ONLY:
        processor = _image_only(folder, IMAGE_ONLY[model_type])
    else:
        with opened(folder, "processor_config.json, preprocessor_config.json"):
            processor = AutoProcessor.from_pretrained(folder, backend="pil", **TRUSTED)
    processor.chat_template = processor.chat_template or _tokenizers_template(processor, folder)
    _require_padding(processor.tokenizer, folder)
    # some settings are first read when a text is processed
    with opened(folder, "tokenizer_config.json"):
        processor.tokenizer(["a", "two words"], padding=True)
    return processor


def _image_only(folder: Path, kind: Any) -> Any:
    """Build the processor of a class whose video half is left out."""
    with opened(folder, "preprocessor_config.json"):
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **TRUSTED)
    with opened(folder, "tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(folder, **TRUSTED)
    with opened(folder, "processor_config.json"):
        stored, _ = kind.get_processor_dict(folder, local_files_only=True)
        # The folder's own processor settings: tokens per image, which layer is read, how images are
        # cut.
        names = set(inspect.signature(kind.__init__).parameters) - set(kind.get_attributes())
        settings = {name: stored[name] for name in names if name in stored}
        settings["chat_template"] = settings.get("chat_template") or _template_file(folder)
        return kind(image_processor, tokenizer, **settings)


def _template_file(folder: Path) -> str | None:
    """Read the folder's chat template from its own file; it overrides the tokenizer's, as in
    transformers."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text()
    if (folder / "chat_template.json").is_file():
        return read_settings(folder / "chat_template.json").get("chat_template")
    return None


def _tokenizers_template(processor: Any, folder: Path) -> str:
    template = processor.tokenizer.chat_template
    if not isinstance(template, str):
        raise RoboAlignError(
            "there is no chat template in chat_template.jinja, chat_template.json, processor_config.json or "
            "tokenizer_config.json",
            where=str(folder),
            fix="copy chat_template.jinja (or .json) from the folder of the instruct model that this one comes from",
        )
    return template


def _require_padding(tokenizer: Any, folder: Path) -> None:
    """Pad with the end token if the folder names no padding token: padding is masked, so any token
    will do."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise RoboAlignError(
            "the tokenizer has neither a pad token nor an end token",
            where=str(folder / "tokenizer_config.json"),
            fix="set pad_token there to a token of the vocabulary",
        )


def bound_pixels(processor: Any, least: int | None, most: int | None) -> None:
    """Set the least and the most pixels to which the processor resizes an image; None: unchanged.

    They are saved with the model. Raises RoboAlignError for a class that resizes to a fixed size,
    and if the most are fewer than the least.
    """
    images = processor.image_processor
    if least is None and most is None:
        return
    if not type(images).__name__.startswith("Qwen2VL"):
        raise RoboAlignError(
            f"{type(processor).__name__} resizes images to fixed sizes and has no bounds on pixels",
            where="backbone.images",
            fix="leave out `images`, or use a model of Qwen2.5-VL or Qwen3-VL",
        )
    low, high = least or images.size["shortest_edge"], most or images.size["longest_edge"]
    if low > high:
        raise RoboAlignError(
            f"an image has at least {low} and at most {high} pixels",
            where="backbone.images",
            fix="set min_pixels and max_pixels, the first not above the second",
        )
    images.size = type(images.size)(shortest_edge=low, longest_edge=high)


def save_processor(processor: Any, folder: str | Path) -> None:
    """Write a processor with its tokenizer into `folder`, so that stock tools (vLLM, verl) can open it too."""
    processor.save_pretrained(folder)
    for name, settings in stock_files(processor).items():
        write_json(Path(folder) / name, settings)


def stock_files(processor: Any) -> dict[str, dict[str, Any]]:
    """Return name -> contents of the files that other tools need to open a folder; {} if
    `save_pretrained` is enough.

    Here such a model has no video half, and `save_pretrained` writes no settings for one; the stock
    processors require them. The settings of the image half go into their own file, where
    transformers before 5 looks for them.
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
    if not stock.startswith("Qwen"):  # their two halves use `size` in two meanings
        same.append("size")
    video = {
        "video_processor_type": VIDEO_PROCESSORS[stock],
        **{name: image[name] for name in same if name in image},
    }
    return {
        "preprocessor_config.json": {**image, "processor_class": stock},
        "video_preprocessor_config.json": {**video, "processor_class": stock},
    }
