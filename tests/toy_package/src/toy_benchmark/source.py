"""A source of questions and answers, which a mixture names by `preset: toy-colors`."""

from roboalign.conversations.qa.presets import QaPreset

COLORS = QaPreset(
    name="toy-colors",
    hub=None,
    licence="CC0-1.0",
    count=100,
    kind="general",
    layout="llava",
    notes="Which color a square has.",
    parts=(("colors.json", "images"),),
    fetch="copy colors.json and images/ into {folder}",
)
