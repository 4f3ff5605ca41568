"""The sizes of the smallest Qwen3-VL that the tests of training build."""

from roboalign.mllm.tiny import TinyConfig

TINY = TinyConfig(
    image_size=16,
    patch_size=4,
    merge=2,
    vision_width=16,
    vision_depth=2,
    vision_heads=2,
    width=32,
    depth=2,
    heads=2,
    kv_heads=1,
    mlp_width=32,
    vocab_size=420,
)
