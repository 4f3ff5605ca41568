"""Build small random models of other classes than the tiny model's, each with its processor and
kind of template.

Nothing is downloaded. They are for checks (`tests/backbones/`) and tests: a result holds for the
class, its processor and the shape of its chat template. It says nothing about published weights.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)

from roboalign.mllm.load import Mllm
from roboalign.mllm.processors import (
    ImageOnlyLlavaOnevisionProcessor,
    ImageOnlyQwen2_5_VLProcessor,
    ImageOnlySmolVLMProcessor,
)
from roboalign.mllm.tiny import (
    CHAT_TEMPLATE,
    MAX_LENGTH,
    REPLY_TOKENS,
    TinyConfig,
    build_tiny,
    train_tokenizer,
)

WIDTH, DEPTH = 48, 3
INIT_STD = 0.2  # large enough that greedy answers of a random model depend on image and question
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": INIT_STD,
    "max_position_embeddings": MAX_LENGTH,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": INIT_STD,
}
# The families' templates differ in what surrounds an answer, and these keep that difference: a turn
# closed by a token after a header that ends where the answer begins (CHAT_TEMPLATE); a space
# between header and answer, which the generation prompt leaves out; and answers that no token
# closes.
_PARTS = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>IMAGE_END"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    + _PARTS.replace("IMAGE_END", "")
    + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper + ': ' }}"
    + _PARTS.replace("IMAGE_END", "\n")
    + "{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_class(name: str, texts: Sequence[str], *, tied: bool = True, seed: int = 0) -> Mllm:
    """Build a random model of class `name` (a key of BUILDERS), float32 on the CPU; `tied` ties its
    embeddings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILDERS[name](texts, tied)


def _qwen3_vl(texts: Sequence[str], tied: bool) -> Mllm:
    config = TinyConfig(
        width=WIDTH,
        heads=4,
        kv_heads=2,
        mlp_width=96,
        depth=DEPTH,
        vision_width=32,
        vision_depth=2,
        vision_heads=2,
        deepstack=(0,),
        image_size=32,
        patch_size=8,
        merge=2,
        vocab_size=600,
    )
    mllm = build_tiny(config, texts)
    # The tiny model resizes every image to one size; Qwen's own processor keeps the size between two bounds.
    mllm.processor.image_processor = Qwen2VLImageProcessorPil(
        patch_size=8, temporal_patch_size=1, size={"shortest_edge": 256, "longest_edge": 4096}
    )
    if not tied:
        mllm.model.config.tie_word_embeddings = (
            mllm.model.config.text_config.tie_word_embeddings
        ) = False
        mllm.model = type(mllm.model)(mllm.model.config).eval()
    return _with_ends(mllm)


def _qwen2_5_vl(texts: Sequence[str], tied: bool) -> Mllm:
    tokenizer = train_tokenizer(texts, 600)
    vocabulary = tokenizer.get_vocab()
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = {name: vocabulary[f"<|{name}|>"] for name in names}
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "tie_word_embeddings": tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": _thirds(),
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "out_hidden_size": TEXT["hidden_size"],
            "initializer_range": INIT_STD,
        },
        tie_word_embeddings=tied,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 256, "longest_edge": 4096}
    )
    processor = ImageOnlyQwen2_5_VLProcessor(
        image_processor, tokenizer, chat_template=CHAT_TEMPLATE
    )
    return _with_ends(Mllm(Qwen2_5_VLForConditionalGeneration(config).eval(), processor))


def _smolvlm(texts: Sequence[str], tied: bool) -> Mllm:
    """Build SmolVLM, which cuts images into tiles of 32 pixels (4 tokens each) and shows the whole
    image once more."""
    tokenizer = train_tokenizer(texts, 600)
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokens = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles]
    tokenizer.add_special_tokens(
        {
            "extra_special_tokens": tokens,
            "eos_token": "<end_of_utterance>",
            "bos_token": "<|im_start|>",
        }
    )
    image_processor = SmolVLMImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    processor = ImageOnlySmolVLMProcessor(
        image_processor, tokenizer, image_seq_len=4, chat_template=SMOLVLM_TEMPLATE
    )
    config = SmolVLMConfig(
        text_config={**_llama(tokenizer), "tie_word_embeddings": tied},
        vision_config=VISION,
        scale_factor=2,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=tied,
    )
    return _with_ends(Mllm(SmolVLMForConditionalGeneration(config).eval(), processor))


def _llava(texts: Sequence[str], tied: bool) -> Mllm:
    """Build LLaVA-1.5: CLIP, one square image, a SentencePiece vocabulary with a begin token."""
    tokenizer = train_metaspace_tokenizer(texts, 700)
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=True
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaConfig(
        text_config={**_llama(tokenizer), "tie_word_embeddings": tied},
        vision_config={"model_type": "clip_vision_model", **VISION, "projection_dim": 32},
        image_token_index=processor.image_token_id,
        image_seq_length=16,
        tie_word_embeddings=tied,
    )
    return _with_ends(Mllm(LlavaForConditionalGeneration(config).eval(), processor))


def _llava_onevision(texts: Sequence[str], tied: bool) -> Mllm:
    """Build LLaVA-OneVision: SigLIP on the whole image and on tiles of the best of four grids,
    padding taken out again."""
    tokenizer = train_tokenizer(texts, 600)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>", "<video>"]})
    grids = [[32, 32], [32, 64], [64, 32], [64, 64]]
    image_processor = LlavaOnevisionImageProcessorPil(
        size={"height": 32, "width": 32}, image_grid_pinpoints=grids
    )
    template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n")
    processor = ImageOnlyLlavaOnevisionProcessor(
        image_processor,
        tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            **TEXT,
            "vocab_size": len(tokenizer),
            "tie_word_embeddings": tied,
        },
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=grids,
        tie_word_embeddings=tied,
    )
    return _with_ends(Mllm(LlavaOnevisionForConditionalGeneration(config).eval(), processor))


BUILDERS: dict[str, Callable[[Sequence[str], bool], Mllm]] = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "llava": _llava,
    "llava_onevision": _llava_onevision,
}


def train_metaspace_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of SentencePiece's kind, like Llama's.

    Spaces are part of words, unknown characters become bytes, and a begin token is put before every
    text.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size - 300, show_progress=False)
    )
    learned = json.loads(trained.to_str())["model"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<image>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in REPLY_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=["<image>"],
        model_max_length=MAX_LENGTH,
        padding_side="right",
    )


def _thirds() -> list[int]:
    """Split the rotary frequencies of a head among time, height and width."""
    frequencies = TEXT["hidden_size"] // TEXT["num_attention_heads"] // 2
    return [frequencies - 2 * (frequencies // 3), frequencies // 3, frequencies // 3]


def _llama(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "model_type": "llama",
        **TEXT,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }


def _with_ends(mllm: Mllm) -> Mllm:
    mllm.model.generation_config.eos_token_id = mllm.tokenizer.eos_token_id
    mllm.model.generation_config.pad_token_id = mllm.tokenizer.pad_token_id
    return mllm
