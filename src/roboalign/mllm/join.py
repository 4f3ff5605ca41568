"""Join a text model from a GGUF file and a DINOv2 encoder from an ONNX file as a LLaVA of Hugging
Face's own class.

Inference engines read both formats; here the weights become ordinary float32 weights that can be
trained. The projector between the two is new and random; `backbone.connector` of a recipe trains
it. The readers need the packages `gguf` and `onnx`, which nothing else here imports
(requirements-small.lock).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from roboalign.core.errors import RoboAlignError
from roboalign.mllm.load import Mllm

IMAGE = "<image>"
# what opens the first question, after the text model's own default system turn
USER = "<|im_start|>user\n"
FEATURE_LAYER = -2  # LLaVA's: the hidden states before the encoder's last block
MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # ImageNet's pixel statistics, which DINOv2 was trained with
HEAD_WIDTH = 64  # the same for every size of DINOv2
PRE_TOKENIZER = "smollm"  # GGUF's name for SmolLM2's way of splitting a text into words
_AGAIN = "install the package again: the file is cut, or another one is in its place"
# transformers has renamed the attention's parts since the file was exported.
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def read_gguf(path: str | Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """Read the text model of a GGUF file, float32 on the CPU, and its tokenizer with the chat
    template.

    Quantized weights (Q4_1, Q8_0, ...) are dequantized: they are the file's rounded weights, not
    the original ones. Raises RoboAlignError if the file is no text model in GGUF, or `gguf` is
    missing.
    """
    path = _existing(path)
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise _missing("gguf", path) from error
    source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        fields = GGUFReader(path).fields
        kind = fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else None
        read = AutoTokenizer.from_pretrained(path.parent, **source)
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **source)
    except (OSError, ValueError, KeyError, RuntimeError, IndexError) as error:
        raise RoboAlignError(
            f"cannot be read as a text model in GGUF ({error})", where=str(path), fix=_AGAIN
        ) from error
    if kind != PRE_TOKENIZER or read.chat_template is None:
        raise RoboAlignError(
            f"its tokenizer is of the kind {kind!r}, or has no chat template",
            where=str(path),
            fix=f"give an instruct model of the kind {PRE_TOKENIZER!r}, as SmolLM2's",
        )
    del model.config.quantization_config  # the weights in memory are no longer quantized
    return model.eval(), _tokenizer(read)


def _tokenizer(read: Any) -> PreTrainedTokenizerFast:
    """Build the tokenizer as the text model was trained.

    Each digit is a token of its own, which transformers' GGUF reader does not apply to the kind
    `smollm`, and padding is not the token that ends an answer.
    """
    inner = read.backend_tokenizer
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    special = [token.content for token in read.added_tokens_decoder.values() if token.special]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=read.bos_token,
        eos_token=read.eos_token,
        unk_token=read.unk_token,
        pad_token=read.unk_token,
        extra_special_tokens=special,
        chat_template=read.chat_template,
        padding_side="right",
    )


def read_dinov2(path: str | Path) -> Dinov2Model:
    """Read the DINOv2 encoder, float32, from an ONNX file that was exported from transformers'
    DINOv2 as `backbone`.

    What follows the encoder in the file (the decoder of some task) is left out. Raises
    RoboAlignError if a weight is missing or has another shape than DINOv2's, or `onnx` is missing.
    """
    path = _existing(path)
    weights = _onnx_weights(path)
    state = {
        _renamed(name.removeprefix("backbone.")): torch.from_numpy(values.copy())
        for name, values in weights.items()
        if name.startswith("backbone.")
    }
    try:
        model = Dinov2Model(_dinov2_config(state))
        model.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError) as error:
        raise RoboAlignError(
            f"holds no DINOv2 encoder under the name `backbone` ({error})",
            where=str(path),
            fix=_AGAIN,
        ) from error
    return model.eval()


def _onnx_weights(path: Path) -> dict[str, np.ndarray]:
    """Return every named weight of the graph.

    The exporter names neither a Linear's weight, which it transposes, nor the parts of the position
    table; these are found through the node that reads them.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise _missing("onnx", path) from error
    try:
        graph = onnx.load(str(path)).graph
    except DecodeError as error:
        raise RoboAlignError("not an ONNX file", where=str(path), fix=_AGAIN) from error
    tensors = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    weights = {name: values for name, values in tensors.items() if not name.startswith("onnx::")}
    table = []
    for node in graph.node:
        for name in (name for name in node.input if name.startswith("onnx::") and name in tensors):
            if node.op_type == "MatMul":
                weights[
                    node.name.strip("/").replace("/", ".").removesuffix(".MatMul") + ".weight"
                ] = tensors[name].T
            elif node.name.startswith("/backbone/embeddings/") and tensors[name].ndim == 3:
                table.append(
                    tensors[name]
                )  # position of the class token [1, 1, W], and of the patches [1, P, W]
    if table:
        parts = sorted(table, key=lambda part: part.shape[1])
        weights["backbone.embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    return weights


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def _dinov2_config(state: dict[str, Tensor]) -> Dinov2Config:
    """Read the shapes from the weights."""
    width, _, patch, _ = state["embeddings.patch_embeddings.projection.weight"].shape
    patches = state["embeddings.position_embeddings"].shape[1] - 1
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith(".norm1.weight") for name in state),
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        patch_size=patch,
        image_size=round(patches**0.5) * patch,
        mlp_ratio=state["encoder.layer.0.mlp.fc1.weight"].shape[0] // width,
        use_mask_token=False,
    )


def join(
    text: Any,
    tokenizer: PreTrainedTokenizerFast,
    vision: Dinov2Model,
    *,
    image_size: int,
    seed: int = 0,
) -> Mllm:
    """Join the two as a LLaVA with a projector of two layers with random weights (fixed by `seed`).

    `image_size` squared pixels become (image_size / patch size)^2 tokens. An image of another shape
    is squeezed into the square, so that nothing is cut off. The text model gets one more token,
    `<image>`; without an image, its logits for the other tokens do not change. Both input models
    are consumed. Raises RoboAlignError if image_size is no multiple of the patch size.
    """
    patch = int(vision.config.patch_size)  # type: ignore[arg-type]
    if image_size < patch or image_size % patch:
        raise RoboAlignError(
            f"image_size {image_size} is no multiple of the encoder's patches of {patch} pixels",
            fix=f"give {max(round(image_size / patch), 1) * patch}",
        )
    tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, IMAGE]})
    _add_row(text, len(tokenizer))
    processor = _processor(tokenizer, image_size, patch)
    tied = text.get_output_embeddings().weight is text.get_input_embeddings().weight
    config = LlavaConfig(
        text_config=text.config,
        vision_config=vision.config,
        image_token_index=processor.image_token_id,
        image_seq_length=(image_size // patch) ** 2,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.model.vision_tower.load_state_dict(vision.state_dict())
    if not tied:
        model.lm_head.load_state_dict(text.lm_head.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Mllm(model.eval(), processor)


@torch.no_grad()
def _add_row(text: Any, rows: int) -> None:
    """Add a row for `<image>`, the mean of the other rows, to the embedding table and to the output
    table if it is separate."""
    old = text.get_input_embeddings().weight.shape[0]
    text.resize_token_embeddings(rows, mean_resizing=False)
    for layer in (text.get_input_embeddings(), text.get_output_embeddings()):
        layer.weight[old:] = layer.weight[:old].mean(dim=0)


def _processor(tokenizer: PreTrainedTokenizerFast, image_size: int, patch: int) -> LlavaProcessor:
    side = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessorPil(
        size=side, do_center_crop=False, crop_size=side, image_mean=MEAN, image_std=STD
    )
    tokenizer.chat_template = _with_images(tokenizer)
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def _with_images(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the text model's ChatML template, extended to messages in parts; the model's default
    system turn is kept."""
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    lead, found, _ = str(rendered).partition(USER)
    if not found:
        raise RoboAlignError(
            "the text model's chat template is not ChatML",
            where="tokenizer.chat_template",
            fix="join a model whose turns begin with <|im_start|>",
        )
    return (
        "{% if messages[0]['role'] != 'system' %}{{ " + repr(lead) + " }}{% endif %}"
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '"
        + IMAGE
        + "\n' }}{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise RoboAlignError("the file does not exist", where=str(path), fix="make setup-small")
    return path


def _missing(package: str, path: Path) -> RoboAlignError:
    return RoboAlignError(
        f"the package `{package}`, which reads it, is missing",
        where=str(path),
        fix="make setup-small",
    )
