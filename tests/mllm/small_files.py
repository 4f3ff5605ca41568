"""A GGUF and an ONNX file of tiny random models, laid out as those that SmolLM2 and the ViT come in."""

import json
import warnings
from pathlib import Path

import gguf
import onnx
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

from roboalign.mllm.join import RENAMED

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
SYSTEM = "You are a test."
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    + SYSTEM
    + "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Quantisation takes 32 numbers at a time: every width is a multiple of it.
TEXT = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    initializer_range=0.2,
)
VISION = Dinov2Config(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=1,
    patch_size=14,
    image_size=56,
    use_mask_token=False,
)


def write_gguf(path: Path, texts: list[str]) -> LlamaForCausalLM:
    """Write a random Llama at 4 bits (its embeddings at 8); returns it with the weights that the file's numbers say."""
    vocabulary, merges = _bpe(texts)
    TEXT.vocab_size = len(vocabulary)
    torch.manual_seed(3)
    model = LlamaForCausalLM(TEXT).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.2)
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, vocabulary, merges)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = parameter.numpy()
            place = _place(name)
            if place.endswith(
                ("attn_q.weight", "attn_k.weight")
            ):  # llama.cpp turns pairs, transformers halves
                heads = TEXT.num_attention_heads if "attn_q" in place else TEXT.num_key_value_heads
                values = (
                    values.reshape(heads, 2, -1, values.shape[1])
                    .swapaxes(1, 2)
                    .reshape(values.shape)
                )
            kind = (
                gguf.GGMLQuantizationType.F32 if "norm" in place else gguf.GGMLQuantizationType.Q4_1
            )
            kind = gguf.GGMLQuantizationType.Q8_0 if place == "token_embd.weight" else kind
            stored = gguf.quants.quantize(values, kind)
            writer.add_tensor(place, stored, raw_dtype=kind)
            exact = torch.from_numpy(gguf.quants.dequantize(stored, kind).copy())
            if place.endswith(("attn_q.weight", "attn_k.weight")):
                exact = (
                    exact.reshape(heads, -1, 2, exact.shape[1]).transpose(1, 2).reshape(exact.shape)
                )
            parameter.copy_(exact)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def write_onnx(path: Path) -> "Network":
    """Export a random DINOv2 with a layer behind it, its parts named as transformers named them when the ViT was."""
    torch.manual_seed(4)
    network = Network()
    for parameter in network.parameters():  # equal weights would be written once
        nn.init.normal_(parameter, 0.0, 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (torch.rand(1, 3, 28, 28),),
            str(path),
            opset_version=14,
            dynamo=False,
            input_names=["input_image"],
            output_names=["output"],
            dynamic_axes={"input_image": {0: "batch"}},
        )
    model = onnx.load(str(path))
    for one in (*model.graph.initializer, *model.graph.node):
        one.name = _as_then(one.name)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [_as_then(name) for name in names]
    onnx.save(model, str(path))
    return network


class Network(nn.Module):
    """An encoder and what some task put behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Dinov2Model(VISION)
        self.decoder = nn.Linear(VISION.hidden_size, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.backbone(pixels).last_hidden_state)


def _as_then(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(new, old).replace(new.replace(".", "/"), old.replace(".", "/"))
    return name


def _bpe(texts: list[str]) -> tuple[list[str], list[str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    return sorted(learned["vocab"], key=learned["vocab"].__getitem__), [
        " ".join(pair) for pair in learned["merges"]
    ]


def _describe(writer: gguf.GGUFWriter, vocabulary: list[str], merges: list[str]) -> None:
    writer.add_context_length(TEXT.max_position_embeddings)
    writer.add_embedding_length(TEXT.hidden_size)
    writer.add_block_count(TEXT.num_hidden_layers)
    writer.add_feed_forward_length(TEXT.intermediate_size)
    writer.add_head_count(TEXT.num_attention_heads)
    writer.add_head_count_kv(TEXT.num_key_value_heads)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(TEXT.rms_norm_eps)
    writer.add_vocab_size(len(vocabulary))
    writer.add_rope_dimension_count(TEXT.hidden_size // TEXT.num_attention_heads)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in SPECIAL else normal for token in vocabulary])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)


def _place(name: str) -> str:
    """What GGUF calls a weight of a Llama."""
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
        "model.layers": "blk",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
    }
    for theirs, its in names.items():
        name = name.replace(theirs, its)
    return name
