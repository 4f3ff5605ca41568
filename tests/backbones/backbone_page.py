"""The page of `backbone_checks.py`: presets, and which class passes which check."""

from roboalign.mllm.presets import MODEL_PRESETS, image_tokens, meta_model, preset_config
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

`backbone.source` takes any folder that `AutoModelForImageTextToText` opens
([choose a backbone](../how-to/choose-a-backbone.md)). This page lists the model classes for which every step of the
recipe is known to work. `python tests/backbones/backbone_checks.py` generates it; a test fails when it is out of date.

## What passes

Each check runs on a small random model of the class (text width {WIDTH}, {DEPTH} layers). It uses the class's own
processor and its family's kind of chat template, in float32 on the CPU. A pass means that the code handles the class:
positions, templates, image tokens, caches, tied embeddings. It says nothing about published weights or about how well a
model performs.
"""
PRESET_TEXT = f"""## Presets

Shapes of published models, taken from each repository's config.json. `roboalign plan` and the recipes under
`recipes/paper/` recognize a preset by its folder name before any weight is on disk. The shapes were written by hand. A
test builds each one on the `meta` device and compares its parameter count with the count in its safetensors files. A
star marks presets whose count was not available. "Layer" is the layer whose hidden states the action head reads. The
paper uses 18 of 28 for Qwen2.5-VL-7B; for other models we take the same share, rounded. "Tokens" is the number of
tokens of one {IMAGE} x {IMAGE} image. A test compares it with the stock image processor of every family.
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
    for name, preset in MODEL_PRESETS.items():
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
