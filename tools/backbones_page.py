"""The page of `tools.backbones`: presets, and which class passes which check."""

from roboalign.mllm.presets import PRESETS, image_tokens, meta_model, preset_config
from roboalign.mllm.tiny_classes import BUILDERS, DEPTH, WIDTH

IMAGE = 224
TITLES = {
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "smolvlm": "SmolVLM2",
    "llava": "LLaVA-1.5",
    "llava_onevision": "LLaVA-OneVision",
}
INTRODUCTION = f"""# Backbones

Any folder that `AutoModelForImageTextToText` opens can be named as `backbone.source`
([your-own-model.md](your-own-model.md)). This page says for which classes every step of the recipe is known to work. It
is made by `python -m tools.backbones`, and a test fails where it is out of date.

## What passes

Each check runs on a small random model of the class (text {WIDTH} wide, {DEPTH} layers) with the class's own
processor and its family's kind of chat template, in float32 on the CPU. It says that the code handles the class:
positions, templates, image tokens, caches, tied embeddings. It says nothing about published weights, which could not be
had where this was written, nor about how well a model does.
"""
PRESET_TEXT = f"""## Presets

Shapes of published models, from each repository's config.json: `roboalign plan` and recipes under `recipes/paper/` know
them by the name of their folder before any weight is there. The shapes were written down by hand. A test builds each on
the `meta` device and compares its parameters with the count that its safetensors files state; a star marks those whose
count was not at hand. "Layer" is the one whose hidden states the action head reads: 18 of 28 for Qwen2.5-VL-7B is the
paper's, elsewhere it is the same share, rounded, which is ours. "Tokens" are those of one {IMAGE} x {IMAGE} image,
which a test compares with the stock image processor for every family.
"""


def page(cells: dict[str, dict[str, str]], meanings: dict[str, str]) -> str:
    """The whole page as Markdown. `cells` is check -> class -> cell, `meanings` is check -> what it checks."""
    names = list(BUILDERS)
    table = [_row("check", *(TITLES[name] for name in names)), _row(*["---"] * (len(names) + 1))]
    table += [_row(check, *(row[name] for name in names)) for check, row in cells.items()]
    explained = [f"- **{check}**: {' '.join(meanings[check].split())}" for check in cells]
    return "\n".join([INTRODUCTION, *table, "", *explained, "", PRESET_TEXT, *_presets()]) + "\n"


def _presets() -> list[str]:
    rows = [
        _row("preset", "repository", "parameters", "layers", "layer", "width", "tokens"),
        _row(*["---"] * 7),
    ]
    for name, preset in PRESETS.items():
        text = preset_config(name).get_text_config()
        count = preset.published or sum(
            p.numel() for p in meta_model(preset_config(name)).parameters()
        )
        shown = f"{count / 1e9:.2f} B" + ("" if preset.published else "*")
        rows.append(
            _row(
                f"`{name}`",
                preset.repository,
                shown,
                text.num_hidden_layers,
                preset.layer,
                text.hidden_size,
                image_tokens(preset.image, IMAGE, IMAGE),
            )
        )
    return rows


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
