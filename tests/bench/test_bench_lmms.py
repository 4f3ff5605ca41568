"""The preset `lmms-eval` against lmms-eval 0.7.3 itself: the same prompts, and the same score of each reply.

Runs where the extra is installed (`requirements-bench.lock`); elsewhere it is skipped.
"""

import argparse
import importlib
import io
import random
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from bench_models import as_datasets_writes, script, small_model
from golden_replies import LETTERS, POINTS, YES_NO
from made_sets import write_sets
from PIL import Image

from roboalign.bench import measure
from roboalign.bench.items import BenchItem
from roboalign.bench.letters import ranked_letter, stated_letter
from roboalign.bench.lmms_entry import manifest
from roboalign.bench.measure import BenchConfig, BenchModel, bench_model, question_of
from roboalign.bench.reading import grade
from roboalign.bench.rows import bench_rows
from roboalign.bench.tasks.registry import BENCH_TASKS, find_protocol
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.files import write_text
from roboalign.episodes.pictures import size_of_file

pytest.importorskip("lmms_eval", reason="lmms-eval is optional: requirements-bench.lock")
lmms = importlib.import_module("roboalign.bench.lmms")
PAPER = STYLES["paper"]

# task here, module and name of the functions there, metric, key of the score in it, settings of the prompt
THERE: list[tuple[str, str, str, str, str, str, str]] = [
    ("mmstar", "lmms-eval", "mmstar", "mmstar", "", "average", "score"),
    ("mmstar", "qwen3-vl", "mmstar", "mmstar", "", "average", "score"),
    ("blink_relative_depth", "lmms-eval", "blink", "blink", "", "blink_acc", "is_correct"),
    ("robospatial", "lmms-eval", "robo_spatial", "robo_spatial", "", "robo_spatial_score", "score"),
    ("where2place", "lmms-eval", "where2place", "where2place", "", "where2place_acc", "accuracy"),
    (
        "where2place",
        "qwen3-vl",
        "where2place",
        "where2place",
        "_json",
        "where2place_acc",
        "accuracy",
    ),
    ("erqa", "lmms-eval", "erqa", "erqa", "", "erqa_acc", "is_correct"),
    ("embspatial", "lmms-eval", "embspatial", "embspatial", "", "embspatial_acc", "is_correct"),
    ("cv_bench", "lmms-eval", "cv_bench", "cv_bench", "", "cv_bench_acc", "is_correct"),
    ("refspatial", "lmms-eval", "refspatial", "refspatial", "", "refspatial_acc", "accuracy"),
    ("refspatial", "qwen3-vl", "refspatial", "refspatial", "_json", "refspatial_acc", "accuracy"),
]
KWARGS = {
    ("mmstar", "lmms-eval"): {
        "pre_prompt": "",
        "post_prompt": "\nAnswer with the option's letter from the given choices directly",
    },
    ("mmstar", "qwen3-vl"): {
        "pre_prompt": "Question: ",
        "post_prompt": "Answer with the option letter only.",
    },
    ("blink_relative_depth", "lmms-eval"): {
        "pre_prompt": "Note: You only need to respond with {} without providing any additional information.\n"
    },
    ("embspatial", "lmms-eval"): {
        "pre_prompt": "Note: You only need to respond with A, B, C, D without providing any additional information.\n"
    },
    ("cv_bench", "lmms-eval"): {
        "pre_prompt": "Note: You only need to respond with {} without providing any additional information.\n"
    },
}
IDS = [f"{row[0]}-{row[1]}" for row in THERE]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


def opened(value: Any) -> Any:
    """A value of a row as `datasets` gives it: images decoded."""
    if isinstance(value, dict) and value.get("bytes"):
        return Image.open(io.BytesIO(value["bytes"]))
    return [opened(one) for one in value] if isinstance(value, list) else value


def pairs_of(sets: Path, name: str) -> list[tuple[BenchItem, dict[str, Any]]]:
    task = BENCH_TASKS[name]
    rows = bench_rows(sets / name, task.files, task.columns)
    return [(task.item(row), {k: opened(v) for k, v in row.values.items()}) for row in rows]


def replies() -> list[str]:
    """The golden replies, points of every convention, and texts drawn from the pieces that rules look for."""
    rng = random.Random(5)
    pieces = [
        "A",
        "B",
        "C",
        "D",
        "(A)",
        "(B)",
        "C.",
        "D:",
        "B)",
        "the answer is",
        "Answer:",
        "answer is",
        "\n",
    ]
    pieces += [
        " ",
        ", ",
        "I pick",
        "because",
        "The",
        "my choice is",
        "yes",
        "no",
        "not",
        "a",
        "b",
        "**",
        "'C'",
    ]
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 7))) for _ in range(400)]
    for _ in range(150):
        x, y = rng.uniform(-0.2, 1.2), rng.uniform(-0.2, 1.2)
        whole = [rng.randint(-5, 1010), rng.randint(-5, 1010)]
        texts.append(f"[({x:.3f}, {y:.3f}), ({rng.random():.2f},{rng.random():.2f})]")
        texts.append(f'```json\n[{{"point_2d": {whole}, "label": "a"}}]\n```')
        texts.append(f'[{{"point_2d": [{x:.2f}, {y:.2f}]}}, {{"point_2d": {whole}}}]')
    known = [row[0] for row in (*LETTERS, *YES_NO, *POINTS)]
    return [*known, *texts]


@pytest.mark.parametrize(
    ("name", "preset", "module", "prefix", "suffix", "metric", "key"), THERE, ids=IDS
)
def test_prompts_and_scores_are_the_same(
    sets, tmp_path, name, preset, module, prefix, suffix, metric, key
) -> None:
    there = importlib.import_module(f"lmms_eval.tasks.{module}.utils")
    protocol = find_protocol(BENCH_TASKS[name], preset)
    text_of = getattr(there, f"{prefix}_doc_to_text{suffix}")
    process = getattr(
        there,
        f"{prefix}_process_results{suffix or ('_generation' if name == 'robospatial' else '')}",
    )
    counted = right = 0
    for number, (item, doc) in enumerate(pairs_of(sets, name)):
        if name == "robospatial":
            doc |= there._save_mask(doc)
        arguments = (doc, KWARGS[name, preset]) if (name, preset) in KWARGS else (doc,)
        asked = question_of(item, protocol, PAPER, "direct").strip()
        assert asked == text_of(*arguments).strip()
        size = size_of_file(item.images[0])
        for reply in replies()[number::2]:
            if not reply.strip():
                continue
            mine = grade(reply, item, protocol, PAPER, "direct", size, size).score
            try:
                theirs = process(doc, [reply])[metric][key]
            except (TypeError, AttributeError):  # JSON that is no list of mappings ends their run
                assert name == "robospatial" and reply.startswith("```json")
                theirs = 0.0
            assert mine == pytest.approx(float(theirs)), (reply, item.answer, mine, theirs)
            counted += 1
            right += mine > 0
    assert counted > 2000 and right > 10


def test_letters_of_any_text_are_the_same() -> None:
    mcq = importlib.import_module("lmms_eval.tasks._task_utils.mcq_extract")
    blink = importlib.import_module("lmms_eval.tasks.blink.utils")
    for reply in replies():
        assert ranked_letter(reply, "ABCD") == mcq.extract_mcq_answer(reply, list("ABCD")), reply
        assert stated_letter(reply, "AB") == blink._extract_answer_letter(reply, "AB"), reply


def test_sat_is_asked_and_scored_the_same(sets) -> None:
    there = importlib.import_module("lmms_eval.tasks.sat.utils")
    choose = there.MultiChoiceRegexFilter(regex_pattern=r"(\([A-Z]\))", group_select=0)
    protocol = find_protocol(BENCH_TASKS["sat"], "lmms-eval")
    for item, doc in pairs_of(sets, "sat"):
        assert question_of(item, protocol, PAPER, "direct") == there.sat_doc_to_text(doc)
        assert item.answer == there.sat_doc_to_target(doc)
        for reply in replies():
            if not reply.strip():
                continue
            (theirs,) = choose.apply([[reply]], [doc])
            mine = grade(reply, item, protocol, PAPER, "direct", (96, 64), (96, 64)).score
            assert mine == float(theirs.lower() == item.answer.lower()), reply


def reply_to(question: str, images: int) -> str:
    """A reply that depends on the question alone, so that both programs get the same."""
    return ("The answer is B.", "[(0.3, 0.1), (2.5, 0.1)]")["point" in question]


def test_lmms_eval_runs_our_model_with_the_same_scores(sets, tmp_path, monkeypatch) -> None:
    """Its own loop, data reading, prompt and score, on the made-up sets, against `bench_model`."""
    pytest.importorskip("datasets")
    evaluator = importlib.import_module("lmms_eval.evaluator")
    managers = importlib.import_module("lmms_eval.tasks")
    registry = importlib.import_module("lmms_eval.models").MODEL_REGISTRY_V2
    registry.register_manifest(manifest(), overwrite=True)
    stock = Path(managers.__file__).parent
    names = {"mmstar": ("mmstar", "val"), "where2place": ("where2place", "test")}
    for name, (there, split) in names.items():
        shutil.copytree(sets / name, tmp_path / "sets" / name)
        (found,) = (tmp_path / "sets" / name).rglob("*.parquet")
        found.rename(tmp_path / "sets" / name / f"{split}.parquet")
        as_datasets_writes(tmp_path / "sets" / name, "image", *["mask"] * (name == "where2place"))
        text = f"include: {stock}/{there}/{there}.yaml\ntask: made_{name}\ntag: made\n"
        text += "dataset_path: parquet\ndataset_kwargs:\n"
        text += f"  cache_dir: {tmp_path}/cache\n  data_files:\n    {split}: "
        text += f"{tmp_path}/sets/{name}/{split}.parquet\n"
        write_text(tmp_path / "tasks" / f"made_{name}.yaml", text)
    mllm = small_model(tmp_path / "model")
    script(monkeypatch, reply_to)
    monkeypatch.setattr(lmms, "generate", measure.generate)
    manager = managers.TaskManager("ERROR", include_path=str(tmp_path / "tasks"))
    result = evaluator.simple_evaluate(
        model="roboalign",
        model_args=f"pretrained={tmp_path / 'model'}",
        tasks=[f"made_{name}" for name in names],
        task_manager=manager,
        batch_size=3,
        log_samples=True,
        cli_args=argparse.Namespace(process_with_media=True, output_path=None),
    )
    for name in names:
        model = BenchModel("m", mllm, BenchConfig())
        place = [(BENCH_TASKS[name], sets / name)]
        mine = bench_model(model, place, ["asked"], tmp_path / "out" / name)[name]["asked"]
        samples = sorted(result["samples"][f"made_{name}"], key=lambda row: row["doc_id"])
        key = {"mmstar": ("average", "score"), "where2place": ("where2place_acc", "accuracy")}[name]
        theirs = [row[key[0]][key[1]] for row in samples]
        assert [row["score"] for row in mine] == pytest.approx(theirs)
        assert len(theirs) == 8 and 0 < sum(theirs) < 8


def test_the_entry_point_names_the_class() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    value = pyproject["project"]["entry-points"]["lmms_eval.models"]["roboalign"]
    module, _, name = value.partition(":")
    found = getattr(importlib.import_module(module), name)()
    assert found.model_id == "roboalign"
    module, _, name = found.chat_class_path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is lmms.LmmsModel
