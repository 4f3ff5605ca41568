"""Wordings and protocols that pointing tasks share.

The wordings are those of the named sources to the letter, so that a model reads what it reads there.
"""

from roboalign.bench.presets import BenchPreset, Protocol, around, as_written

UNIT_TUPLES = (
    "Your answer should be formatted as a list of tuples, i.e. [(x1, y1), (x2, y2), ...], where each tuple contains "
    "the x and y coordinates of a point satisfying the conditions above. The coordinates should be between 0 and 1, "
    "indicating the normalized pixel locations of the points in the image."
)
"""RoboPoint's request, of Where2Place's own question file."""
ONLY_TUPLES = "Return only list of tuples, don't add anything else."
THOUSAND_JSON = (
    "Your answer should be JSON format. The coordinates should be between 0 and 1000, indicating the "
    "normalized pixel locations of the points in the image."
)
PIXEL_JSON = (
    'Output the point coordinates in JSON format, for example [{"point_2d": [x, y]}], in pixels of the '
    "image."
)
FLAGEVAL_POINTS = """Your task is to identify specific points in the image based on the question. Respond with a brief explanation if needed, followed by a list of 2D point coordinates.

Each point should be represented as a normalized (x, y) tuple, where both x and y values are floats between 0 and 1, corresponding to the position within the image (e.g., for a point at pixel (50, 75) in a 100*100 image, the normalized coordinate is (0.5, 0.75)).

Format your final answer strictly as follows on the last line of your response:
Answer: [(x1, y1), (x2, y2), ..., (xn, yn)]

Do not include additional text after this line.
"""  # noqa: E501
ROBOBRAIN_TUPLES = (
    ". Your answer should be formatted as a list of tuples, i.e. [(x1, y1), (x2, y2), ...], where each tuple "
    "contains the x and y coordinates of a point satisfying the conditions above. The coordinates should indicate "
    "the normalized pixel locations of the points in the image."
)
"""RoboBrain2.0's own `inference.py`; despite its words the model answers in pixels of the image."""


MODEL_POINTS: dict[BenchPreset, Protocol] = {
    "qwen2.5-vl": Protocol(
        "Qwen2.5-VL's pixels of the resized image; the wording is ours",
        around(after=f" {PIXEL_JSON}"),
        convention="seen-pixels",
    ),
    "robobrain2": Protocol(
        "RoboBrain2.0, inference.py, pointing",
        around(after=ROBOBRAIN_TUPLES),
        convention="pixels",
    ),
    "trained": Protocol("this package", as_written, convention="cells"),
}
"""What models were trained to write, whatever the task."""
FLAGEVAL = Protocol(
    "FlagEvalMM fef27ec",
    around(after=f"\n{FLAGEVAL_POINTS}"),
    yes_no="answer-line",
    form="last-line",
    convention="unit-or-pixels",
    boxes=True,
)
