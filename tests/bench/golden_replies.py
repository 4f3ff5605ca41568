"""Golden replies in the forms that Qwen, RoboPoint and RoboBrain write: the values are read by eye."""

# reply, letter under: ranked, stated, leading, first-word
LETTERS = [
    ("B", "B", "B", "B", "B"),
    ("B.", "B", "B", "B", "B"),
    ("(B)", "B", "B", "B", "B"),
    ("B)", "B", "B", "B", "B"),
    ("b", "", "B", "B", "B"),
    ("  C\n", "C", "C", "C", "C"),
    ("**D**", "D", "", "", "D"),
    ("A. The red cup", "A", "A", "A", "A"),
    ("(C) to the left of the chair", "C", "C", "C", "C"),
    ("Option B", "B", "", "O", "OPTION"),
    ("The answer is B.", "B", "B", "T", "THE"),
    ("The correct answer is (B).", "B", "B", "T", "THE"),
    ("Answer: C", "C", "C", "A", "ANSWER"),
    ("answer is D because the lamp is nearer", "D", "D", "A", "ANSWER"),
    ("I think the answer is C because it is closer.", "C", "C", "I", "I"),
    ("A is nearer than B, so the answer is B", "A", "B", "A", "A"),
    ("Point (A) is at the wall. Point (B) is in front. So (B)", "B", "B", "P", "POINT"),
    ("The red cup is on the left.", "", "", "T", "THE"),
    ("", "", "", "", ""),
    ("I cannot tell.", "", "", "I", "I"),
    ("\\boxed{C}", "C", "", "", "BOXEDC"),
    ("Final answer: **A**", "A", "", "F", "FINAL"),
]

# reply, read under: starts, last-line, answer-line
YES_NO = [
    ("Yes", "yes", "yes", "yes"),
    ("no.", "no", "no", "no"),
    ("No, the cup is behind the box.", "no", "no", "no"),
    ("Yes, there is enough room.\nAnswer: no", "yes", "no", "no"),
    ("The chair fits there.\nAnswer: yes", "", "yes", "yes"),
    ("The space is narrow.\n\n**Answer:** No", "", "no", "no"),
    ("I do not know", "", "no", ""),
    ("Nothing stands there, so yes", "no", "", "no"),  # both rules ask how it starts
    ("yes or no", "yes", "", "yes"),
    ("It depends.", "", "", ""),
    ("", "", "", ""),
]

# reply, form, points, boxes
QWEN2 = (
    '```json\n[\n\t{"point_2d": [312, 205], "label": "free space"},'
    '\n\t{"point_2d": [330, 211], "label": "free space"}\n]\n```'
)
QWEN3 = '```json\n[\n  {"point_2d": [487, 612], "label": "the spot"}\n]\n```'
BOXED = '```json\n[{"bbox_2d": [100, 120, 180, 240], "label": "cup"}]\n```'
ROBOBRAIN = "[(376, 309), (332, 357), (384, 335)]"
POINTS = [
    ("[(0.52, 0.41), (0.6, 0.45)]", "tuples", [(0.52, 0.41), (0.6, 0.45)], []),
    ("(0.5, 0.25)", "tuples", [(0.5, 0.25)], []),
    ("The free spots are (0.5,0.25) and (0.75,0.5).", "tuples", [(0.5, 0.25), (0.75, 0.5)], []),
    ("[(1, 0)]", "tuples", [(1, 0)], []),
    ("( 0.5, 0.25 )", "tuples", [], []),
    ("( 0.5, 0.25 )", "pairs", [(0.5, 0.25)], []),
    ("[0.5, 0.25]", "tuples", [], []),
    ("[0.5, 0.25]", "pairs", [(0.5, 0.25)], []),
    ("[(0.1, 0.2, 0.3, 0.4)]", "tuples", [], [(0.1, 0.2, 0.3, 0.4)]),
    ("[(0.1, 0.2, 0.3)]", "tuples", [], []),
    ("(-0.1, +1.2)", "tuples", [(-0.1, 1.2)], []),
    ("x=0.5, y=0.25", "tuples", [], []),
    ("(0.1, 0.2)\nAnswer: [(0.3, 0.4)]", "last-line", [(0.3, 0.4)], []),
    ("Answer: [(0.3, 0.4)]\nI hope that helps.", "last-line", [], []),
    (QWEN2, "pairs", [(312, 205), (330, 211)], []),
    (QWEN2, "fenced-json", [(312, 205), (330, 211)], []),
    (QWEN3, "pairs", [(487, 612)], []),
    (QWEN3, "fenced-json", [(487, 612)], []),
    (BOXED, "pairs", [], [(100, 120, 180, 240)]),
    (BOXED, "fenced-json", [], []),
    ('[{"point_2d": [487, 612]}]', "fenced-json", [], []),
    ('```json\n[{"point_2d": [487, 612]\n```', "fenced-json", [], []),
    ('```json\n{"point_2d": [487, 612]}\n```', "fenced-json", [], []),
    ('```json\n[{"point_2d": ["a", 2]}, {"point_2d": [1, 2, 3]}, 7]\n```', "fenced-json", [], []),
    (ROBOBRAIN, "pairs", [(376, 309), (332, 357), (384, 335)], []),
    ("[577, 224, 638, 310]", "pairs", [], [(577, 224, 638, 310)]),
    ("[[137, 116], [169, 94]]", "pairs", [(137, 116), (169, 94)], []),
    ("[0.9, 0.1] and (0.2, 0.3)", "tuples-first", [(0.2, 0.3)], []),
    ("[0.9, 0.1]", "tuples-first", [(0.9, 0.1)], []),
    ("[(-0.1, 0.2), ( 0.3, 0.4 )]", "tuples-first", [(0.3, 0.4)], []),
    ("I see no free space.", "pairs", [], []),
    ("", "pairs", [], []),
]
