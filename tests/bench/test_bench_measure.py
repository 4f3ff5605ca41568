"""A task on a model: what is asked, what is counted by hand, kills, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from bench_models import script, small_model
from made_sets import mask, picture, square, write_sets

import roboalign.bench.measure as measure
from roboalign.bench.items import controlled
from roboalign.bench.measure import BenchConfig, BenchModel, bench_model, items_of, seen_size
from roboalign.bench.summary import (
    cv_bench_score,
    mean_of_subgroups,
    pair_records,
    scored_estimate,
    summarize_replies,
)
from roboalign.bench.tasks.base import options_in
from roboalign.bench.tasks.pointing import UNIT_TUPLES
from roboalign.bench.tasks.registry import find_bench, find_protocol
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl, write_text
from roboalign.evaluate.statistics import mcnemar_exact, wilson
from roboalign.mllm.load import Mllm


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def mllm() -> Mllm:
    return small_model()


def run(mllm, sets, folder, task, controls=("asked",), name="m", **settings):
    model = BenchModel(name, mllm, BenchConfig(**settings))
    return bench_model(model, [(find_bench(task), sets / task)], controls, folder)[task]


def test_mmstar_by_hand(mllm, sets, tmp_path, monkeypatch) -> None:
    # answers are A, B, C, D, A, B, C, D: three right, one wrong, four unreadable
    replies = iter(["A", "The answer is B.", "(C)", "A", "<think>A or", "", "I see", "<FAST_1>"])
    asked = script(monkeypatch, lambda question, images: next(replies))
    rows = run(mllm, sets, tmp_path / "out", "mmstar")["asked"]
    assert asked[0][0] == (
        "Which color does the square have?\nOptions: A: red, B: green, C: blue, D: yellow"
        "\nAnswer with the option's letter from the given choices directly"
    )
    assert [row["score"] for row in rows] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert [row["read"] for row in rows[:4]] == ["A", "B", "C", "A"]
    summary = summarize_replies(rows, 8, "mean of the categories")
    low, high = wilson(3, 8)
    assert summary["score"] == {"value": 3 / 8, "low": low, "high": high, "n": 8}
    assert summary["unreadable"] == 4 and sum(summary["reasons"].values()) == 4
    assert summary["groups"]["math"]["value"] == 1 / 4
    # image emotion 2 of 4, geometry 1 of 2, statistics 0 of 2
    assert summary["headline"]["value"] == pytest.approx((2 / 4 + 1 / 2 + 0) / 3)
    assert summary["chance"] == 1 / 4


def test_where2place_by_hand(mllm, sets, tmp_path, monkeypatch) -> None:
    # the squares are 24 x 16 of 96 x 64; the first has its left upper corner at (0, 0)
    replies = iter(
        [
            "[(0.1, 0.1)]",  # (9, 6), inside the first square
            "[(0.3, 0.1), (0.9, 0.9)]",  # (28, 6) inside the second, (86, 57) not
            "[(0.6, 0.1), (1.5, 0.1)]",  # (57, 6) inside the third, (144, 6) outside the image
            "(0.8, 0.1) and (0.9, 0.2)",  # both inside the fourth: x 72..95, y 0..15
            "Somewhere",
            '[{"point_2d": [300, 300]}]',  # not a tuple
            "[(0.51, 0.3), (0.6, 0.3), (0.1, 0.1)]",  # two of three
            "(1.0, 0.3)",  # x = 96 is the first pixel outside
        ]
    )
    script(monkeypatch, lambda question, images: next(replies))
    rows = run(mllm, sets, tmp_path / "out", "where2place")["asked"]
    assert [row["score"] for row in rows] == pytest.approx([1, 0.5, 0.5, 1, 0, 0, 2 / 3, 0])
    summary = summarize_replies(rows, 8)
    assert (summary["unreadable"], summary["points"], summary["outside"]) == (2, 11, 2)
    assert summary["score"]["value"] == pytest.approx((1 + 0.5 + 0.5 + 1 + 2 / 3) / 8)
    assert summary["chance"] == pytest.approx(24 * 16 / (96 * 64))


def test_one_reply_scores_by_its_convention(mllm, sets, tmp_path, monkeypatch) -> None:
    """The same words are right under one preset and wrong under another."""
    left, top, right, bottom = square(6)
    centre = ((left + right) / 2, (top + bottom) / 2)
    whole = json.dumps([{"point_2d": [int(centre[0] / 96 * 1000), int(centre[1] / 64 * 1000)]}])
    scores = {}
    for preset in ("qwen3-vl", "qwen2.5-vl", "robobrain2", "official"):
        script(monkeypatch, lambda question, images: f"```json\n{whole}\n```")
        rows = run(mllm, sets, tmp_path / preset, "where2place", preset=preset)["asked"]
        scores[preset] = [row["score"] for row in rows]
    assert scores["qwen3-vl"] == [0, 0, 0, 0, 0, 0, 1, 0]
    assert all(sum(scores[name]) == 0 for name in scores if name != "qwen3-vl")


def test_pixels_of_the_resized_image(mllm) -> None:
    """The small processor shows every image as 64 x 64 pixels or near; the grid gives the size."""
    processor = mllm.processor.image_processor
    made = processor([[np.zeros((64, 96, 3), np.uint8)]], return_tensors="pt")
    _, rows, columns = made["image_grid_thw"][0].tolist()
    assert seen_size(mllm, (96, 64)) == (
        columns * processor.patch_size,
        rows * processor.patch_size,
    )


def test_the_controls(mllm, sets, tmp_path, monkeypatch) -> None:
    asked = script(monkeypatch, lambda question, images: "A")
    found = run(mllm, sets, tmp_path / "out", "mmstar", ("asked", "blank", "text", "shuffled"))
    assert [images for _, images in asked[8:16]] == [(127,)] * 8
    assert [images for _, images in asked[16:24]] == [()] * 8
    assert {len(rows) for rows in found.values()} == {8}
    items = items_of(find_bench("mmstar"), sets / "mmstar")
    for item, (question, _) in zip(items, asked[24:]):
        other = controlled(item, "shuffled")
        assert other.text != item.text and question.startswith(other.text)
        words = [[one.text[a:b] for a, b in one.options] for one in (item, other)]
        assert sorted(words[0]) == sorted(words[1]) == ["blue", "green", "red", "yellow"]
        right = [w[one.letters.index(one.answer)] for w, one in zip(words, (item, other))]
        assert right[0] == right[1]
    # always A: right where the right option is now the first one
    firsts = [controlled(item, "shuffled").answer == "A" for item in items]
    assert [row["score"] == 1 for row in found["shuffled"]] == firsts


def test_points_have_no_options_to_shuffle(mllm, sets, tmp_path, monkeypatch) -> None:
    script(monkeypatch, lambda question, images: "(0.1, 0.1)")
    found = run(mllm, sets, tmp_path / "out", "where2place", ("asked", "shuffled"))
    assert found["shuffled"] == []
    assert summarize_replies(found["shuffled"], 8)["not_asked"] == 8


def test_thinking_first_asks_for_tags(mllm, sets, tmp_path, monkeypatch) -> None:
    asked = script(monkeypatch, lambda question, images: "<think>B.</think><answer>A</answer>")
    rows = run(mllm, sets, tmp_path / "out", "mmstar", mode="think")["asked"]
    assert "Write your reasoning between <think> and </think>" in asked[0][0]
    assert [row["read"] for row in rows] == ["A"] * 8


def test_a_killed_command_ends_with_the_same_records(mllm, sets, tmp_path, monkeypatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"batch_size": 3, "max_new_tokens": 6}
    run(mllm, sets, whole, "mmstar", **settings)
    batches = []
    ask = measure._ask

    def dies(*arguments):
        batches.append(arguments[2])
        if len(batches) == 2:
            raise KeyboardInterrupt
        return ask(*arguments)

    monkeypatch.setattr(measure, "_ask", dies)
    with pytest.raises(KeyboardInterrupt):
        run(mllm, sets, cut, "mmstar", **settings)
    path = cut / "mmstar" / "asked.jsonl"
    assert len(read_jsonl(path)) == 3
    write_text(path, path.read_text() + '{"id": "3", "it')  # a kill inside a line
    run(mllm, sets, cut, "mmstar", **settings)
    assert [len(batch) for batch in batches[2:]] == [3, 2]
    assert path.read_bytes() == (whole / "mmstar" / "asked.jsonl").read_bytes()
    batches.clear()
    run(mllm, sets, cut, "mmstar", **settings)
    assert batches == []


def test_other_settings_are_refused(mllm, sets, tmp_path, monkeypatch) -> None:
    script(monkeypatch, lambda question, images: "A")
    run(mllm, sets, tmp_path, "mmstar")
    with pytest.raises(RoboAlignError) as error:
        run(mllm, sets, tmp_path, "mmstar", preset="qwen3-vl")
    assert "`settings.preset` lmms-eval then, qwen3-vl now" in error.value.problem
    with pytest.raises(RoboAlignError) as error:
        run(mllm, sets, tmp_path, "mmstar", limit=4)
    assert "limit" in error.value.problem and error.value.fix == "pass --out with another folder"
    other = write_sets(tmp_path / "other", "mmstar")
    file = other / "mmstar" / "mmstar.parquet"
    import pyarrow.parquet as pq

    table = pq.read_table(file).slice(1)
    pq.write_table(table, file)
    with pytest.raises(RoboAlignError, match="data"):
        run(mllm, other, tmp_path, "mmstar")


def test_the_record_says_what_was_done(mllm, sets, tmp_path, monkeypatch) -> None:
    script(monkeypatch, lambda question, images: "A")
    run(mllm, sets, tmp_path, "where2place")
    state = read_json(tmp_path / "where2place" / "task.json")
    assert state["protocol"]["source"] == "lmms-eval 0.7.3, where2place"
    assert (state["protocol"]["convention"], state["protocol"]["points"]) == ("unit", "mean")
    model = read_json(tmp_path / "model.json")
    assert model["settings"]["temperature"] == 0 and model["settings"]["prompts"] == "paper"
    assert set(model["settings"]["images"]) == {"shortest_edge", "longest_edge"}
    protocol = find_protocol(find_bench("where2place"), "official")
    assert protocol.convention == "unit-or-pixels" and protocol.boxes


# task, letters or words of the answers, and of one item the text that is asked under `lmms-eval`
SHAPES = [
    (
        "blink_relative_depth",
        "ABABABAB",
        "without providing any additional information.\nTwo points",
    ),
    ("erqa", "ABCDABCD", "What color is the square? Choices: A. Red. B. Green."),
    ("embspatial", "ABCDABCD", "does the square have?\nA) red\nB) green\nC) blue\nD) yellow"),
    ("cv_bench", "ABCDABAB", "following choices.\n(A) red (B) green (C) blue (D) yellow"),
    ("sat", "ABABABAA", "A. It moved left\nB. It moved right\n\nOnly output the letter"),
]


@pytest.mark.parametrize(("name", "answers", "text"), SHAPES)
def test_the_items_of_each_set(sets, name, answers, text) -> None:
    task = find_bench(name)
    items = items_of(task, sets / name)
    assert "".join(item.answer for item in items) == answers
    assert text in find_protocol(task, "lmms-eval").wording(items[0])
    for item in items:
        other = controlled(item, "shuffled")
        texts = [[one.text[a:b] for a, b in one.options] for one in (item, other)]
        assert sorted(texts[0]) == sorted(texts[1])
        assert len(texts[0]) == len(item.letters) and texts[0] != texts[1]
        right = [t[one.letters.index(one.answer)] for t, one in zip(texts, (item, other))]
        assert right[0] == right[1]


def test_options_with_a_full_stop_keep_it_where_it_is() -> None:
    text = "Choices: A. Red. B. Green. C. Blue. D. Yellow. Please answer directly."
    spans = options_in(text, "ABCD", r"(?<!\w){}\. ", " Please ")
    assert [text[a:b] for a, b in spans] == ["Red.", "Green.", "Blue.", "Yellow."]
    assert options_in("A. one B. two", "ABC", r"{}\. ") == ()
    assert options_in("A: x, B: y, z, C: w\nmore", "ABC", r"(?<!\w){}:\s*") == (
        (3, 4),
        (9, 13),
        (18, 19),
    )


def test_robospatial_by_hand(mllm, sets, tmp_path, monkeypatch) -> None:
    # yes, no | yes, no, yes | squares 5, 6, 7: (24..47, 16..31), (48..71, 16..31), (72..95, 16..31)
    replies = [
        "Yes",
        "There is room.\nAnswer: yes",
        "It fits.\nAnswer: yes",
        "Answer: no",
        "yes and no",
        '```json\n[{"point_2d": [300, 300]}]\n```',  # (28, 19): inside
        '```json\n[{"point_2d": [10, 10]}, {"point_2d": [600, 400]}]\n```',  # the second inside
        "[(0.8, 0.3)]",  # no fence
    ]
    asked: list = script(monkeypatch, lambda question, images: replies[len(asked) - 1])
    rows = run(mllm, sets, tmp_path / "out", "robospatial")["asked"]
    assert [row["score"] for row in rows] == [1, 0, 1, 1, 0, 1, 1, 0]
    assert [row["reason"] != "ok" for row in rows] == [False] * 4 + [True] + [False] * 2 + [True]
    assert summarize_replies(rows, 8)["groups"]["context"]["value"] == pytest.approx(2 / 3)
    asked.clear()
    rows = run(mllm, sets, tmp_path / "official", "robospatial", preset="official")["asked"]
    # the first word decides; the first pair against the polygon, in fractions
    assert [row["score"] for row in rows] == [1, 0, 0, 0, 1, 0, 0, 1]
    assert asked[0][0].endswith("Answer yes or no.")


def test_refspatial_and_its_splits(mllm, sets, tmp_path, monkeypatch) -> None:
    asked = script(monkeypatch, lambda question, images: "[(0.1, 0.1)]")
    rows = run(mllm, sets, tmp_path / "out", "refspatial")["asked"]
    assert [row["id"] for row in rows[:4]] == [
        "location-0",
        "location-1",
        "location-2",
        "placement-0",
    ]
    assert [row["score"] for row in rows] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert asked[0][0].endswith(
        "i.e. [(x1, y1)]. Return only list of tuples, don't add anything else."
    )
    assert list(summarize_replies(rows, 8)["groups"]) == ["location", "placement", "unseen"]


def test_cv_bench_has_a_score_of_its_own(mllm, sets, tmp_path, monkeypatch) -> None:
    script(monkeypatch, lambda question, images: "A")
    rows = run(mllm, sets, tmp_path / "out", "cv_bench")["asked"]
    # answers A, B, C, D of ADE20K, COCO, ADE20K, COCO and A, B, A, B of Omni3D
    assert cv_bench_score(rows) == pytest.approx(0.5 * ((1 / 2 + 0) / 2 + 2 / 4))
    assert cv_bench_score(rows[:4]) is None


def test_where2place_as_its_authors_ship_it(mllm, tmp_path) -> None:
    folder = tmp_path / "where2place"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    picture(0).save(folder / "images" / "00.jpg")
    mask(0).save(folder / "masks" / "00.jpg")
    row = {
        "question_id": 0,
        "image": "00.jpg",
        "text": f"Point at it. {UNIT_TUPLES}",
        "category": "x",
    }
    (folder / "point_questions.jsonl").write_text(json.dumps(row))  # without a final newline
    (item,) = items_of(find_bench("where2place"), folder)
    assert item.text == "Point at it." and item.mask is not None
    wording = find_protocol(find_bench("where2place"), "official").wording
    assert wording(item) == f"Point at it. {UNIT_TUPLES}"
    write_text(folder / "point_questions.jsonl", json.dumps({**row, "image": "../../x.jpg"}) + "\n")
    with pytest.raises(RoboAlignError):
        items_of(find_bench("where2place"), folder)


def rows(scores, wording="w", items_an_image=1):
    return [
        {
            "id": str(i),
            "item": f"i{i}",
            "images": f"p{i // items_an_image}",
            "question": wording,
            "score": score,
            "subgroup": str(i % 2),
        }
        for i, score in enumerate(scores)
    ]


def test_pairs_by_hand() -> None:
    before, after = [1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 0]
    pair = pair_records(rows(before), rows(after), names=("a", "b"), task="mmstar")
    assert (pair["only_before"], pair["only_after"], pair["n"]) == (1, 3, 6)
    assert pair["value"] == pytest.approx(2 / 6)
    assert pair["p"] == mcnemar_exact(before, after).p
    assert pair["low"] < 2 / 6 < pair["high"]
    shares = pair_records(rows([0.5, 0, 1]), rows([1.0, 0.5, 1]), names=("a", "b"), task="t")
    assert shares["value"] == pytest.approx(1 / 3) and shares["p"] is None
    assert mean_of_subgroups(rows([1, 0, 1, 1])) == pytest.approx((1 + 0.5) / 2)


def test_other_items_do_not_pair() -> None:
    with pytest.raises(RoboAlignError, match="1 items were asked of one of them only, as 2"):
        pair_records(rows([1, 0, 1]), rows([1, 0]), names=("a", "b"), task="mmstar")
    with pytest.raises(RoboAlignError, match="3 items have another wording in one of them"):
        pair_records(rows([1, 0, 1]), rows([1, 0, 1], "v"), names=("a", "b"), task="mmstar")
    changed = rows([1, 0])
    changed[1]["item"] = "another"
    with pytest.raises(RoboAlignError, match="1 items have another image, text or answer"):
        pair_records(rows([1, 0]), changed, names=("a", "b"), task="mmstar")


def test_the_masks_of_the_made_sets_are_the_squares() -> None:
    for number in range(8):
        left, top, right, bottom = square(number)
        filled = np.argwhere(np.asarray(mask(number)))
        assert filled.min(0).tolist() == [top, left] and filled.max(0).tolist() == [bottom, right]


def test_items_that_share_an_image_are_drawn_together() -> None:
    """Four images with two equal items each are four units, not eight: a wider interval."""
    scores = [1, 1, 0, 0, 1, 1, 0, 0]
    apart, together = (scored_estimate(rows(scores, items_an_image=n)) for n in (1, 2))
    assert (apart.low, apart.high) == wilson(4, 8)
    # of 4 images drawn with replacement, 0 are right with 1/16: the 95% interval is everything
    assert (together.value, together.low, together.high, together.n) == (0.5, 0.0, 1.0, 8)
    before, after = rows([0] * 8, items_an_image=2), rows(scores, items_an_image=2)
    pair = pair_records(before, after, names=("a", "b"), task="t")
    assert (pair["value"], pair["only_after"], pair["only_before"], pair["p"]) == (0.5, 4, 0, None)
    assert (pair["low"], pair["high"]) == (0.0, 1.0)


def test_the_bounds_of_the_processor_are_part_of_the_record(sets, tmp_path, monkeypatch) -> None:
    script(monkeypatch, lambda question, images: "A")
    model = BenchModel("m", small_model(), BenchConfig(min_pixels=1024, max_pixels=2048)).bounded()
    bench_model(model, [(find_bench("mmstar"), sets / "mmstar")], ["asked"], tmp_path / "out")
    state = read_json(tmp_path / "out" / "model.json")
    assert state["settings"]["images"] == {"longest_edge": 2048, "shortest_edge": 1024}
    wrong = BenchModel("m", small_model(), BenchConfig(min_pixels=4096, max_pixels=2048))
    with pytest.raises(RoboAlignError) as error:
        wrong.bounded()
    assert error.value.where == "--min-pixels, --max-pixels"
