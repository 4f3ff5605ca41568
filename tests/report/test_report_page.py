"""The page of a run: self-contained, complete, escaped, and silent about what was not run."""

import re
from dataclasses import replace

import pytest
from html_page import Page
from synthetic_run import answers, synthetic_run

from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.token_metrics import summarize
from roboalign.report.caveats import caveats
from roboalign.report.page import write_report
from roboalign.report.plots import interval_plot, line_plot
from roboalign.report.summary import ArmSummary, FrameSample, RunSummary
from roboalign.report.verdict import findings, headline

SECTIONS = (
    "answer",
    "arms",
    "differences",
    "tasks",
    "questions",
    "reasoning",
    "samples",
    "videos",
    "grpo",
    "curves",
    "data",
    "cost",
    "limits",
    "settings",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunSummary:
    return synthetic_run(tmp_path_factory.mktemp("run"), b"\x00\x00\x00\x18ftypmp42")


@pytest.fixture(scope="module")
def html(run, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(run, path)
    return path.read_text()


def test_nothing_is_fetched(html):
    links = Page(html).links
    assert any(link.startswith("data:video/mp4;base64,") for link in links)
    assert any(link.startswith("data:image/png;base64,") for link in links)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?://|file:|@import|url\((?!#)", html)
    assert "<script" not in html


def test_every_section_is_there_and_filled(html):
    page = Page(html)
    assert not page.open
    assert set(SECTIONS) <= set(page.ids)
    assert "Not run." not in "".join(page.texts)
    assert page.tags.count("video") == 2
    assert page.tags.count("svg") >= 15


def test_sections_of_an_empty_run_say_not_run(tmp_path):
    write_report(RunSummary(name="empty"), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert set(SECTIONS) <= set(page.ids)
    assert "".join(page.texts).count("Not run.") == 12  # all but the answer and its limits
    assert "not run" in "".join(page.texts)


def test_without_both_sides_of_rl_there_is_no_verdict(run, tmp_path):
    other = replace(run, arms=[arm for arm in run.arms if arm.name != "roboalign"])
    write_report(other, tmp_path / "report.html")
    text = " ".join(Page((tmp_path / "report.html").read_text()).texts)
    assert "nothing to compare" in text
    assert "Action tokens, asked to reason" not in text and "measurably" not in text


def test_text_of_models_and_people_is_escaped(run, tmp_path):
    evil = "<script>alert(1)</script>&\"'"
    sample = FrameSample(evil, evil, {"sft": evil}, {}, caption=evil)
    evil_run = replace(
        run,
        name=evil,
        recipe=evil,
        notes=[evil],
        environment={evil: evil},
        samples=[sample],
        arms=[ArmSummary("sft", evil, evil, run.arms[1].mllm)],
    )
    write_report(evil_run, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "<script" not in html
    page = Page(html)
    assert not page.open
    assert evil in page.texts


def test_the_numbers_of_the_run_are_on_the_page(run, html):
    text = " ".join(Page(html).texts)
    overall = run.success["arms"]["roboalign"]["overall"]
    assert f"{overall['successes']}/{overall['n']}" in text
    assert f"{100 * overall['rate']:.1f}%" in text
    assert "1 crashed" in text
    assert "0.52% of the 27,000 SFT samples" in text


def test_a_missing_video_is_named(run, tmp_path):
    broken = replace(run, videos=[replace(run.videos[0], path=tmp_path / "gone.mp4")])
    with pytest.raises(RoboAlignError, match=r"gone\.mp4"):
        write_report(broken, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def pair(value, low, high, p, n=100):
    difference = {"value": value, "low": low, "high": high, "n": n}
    return {
        "before": "sft",
        "after": "roboalign",
        "n": n,
        "only_before": 3,
        "only_after": 9,
        "p": p,
        "p_holm": p,
        "difference": difference,
        "difference_by_task": None,
    }


def with_results(success_p=0.5, prefix=(0.05, 0.01, 0.09)):
    value, low, high = prefix
    rate = {
        "successes": 50,
        "n": 100,
        "rate": 0.5,
        "low": 0.4,
        "high": 0.6,
        "crashes": 0,
        "mean_steps": 1.0,
    }
    arm = {"overall": rate, "tasks": {"a": rate}, "run_seeds": {"0": rate}}
    return RunSummary(
        name="x",
        success={
            "arms": {"sft": arm, "roboalign": arm},
            "pairs": [pair(0.06, -0.02, 0.14, success_p)],
        },
        mllm_pairs=[
            {
                "before": "sft",
                "after": "roboalign",
                "prefix_think": {"value": value, "low": low, "high": high, "n": 10},
            }
        ],
    )


def test_the_verdict_follows_the_intervals():
    tokens, success, questions = findings(with_results())
    assert (tokens.mark, success.mark, questions.mark) == ("better", "open", "missing")
    assert "measurably more accurate" in headline(with_results())
    assert "do not settle" in headline(with_results())
    assert findings(with_results(prefix=(0.05, -0.01, 0.09)))[0].mark == "open"
    assert findings(with_results(prefix=(-0.05, -0.09, -0.01)))[0].mark == "worse"
    assert findings(with_results(success_p=0.01))[1].mark == "better"
    assert "succeeds measurably more often" in headline(with_results(success_p=0.01))


def test_limits_follow_from_the_numbers():
    open_run, settled = caveats(with_results()), caveats(with_results(success_p=0.01))
    assert any(
        "beyond chance: p = 0.50 over 100 paired episodes" in sentence for sentence in open_run
    )
    assert not any("beyond chance" in sentence for sentence in settled)
    assert any("trained once" in sentence for sentence in open_run)
    assert any("1 task" in sentence for sentence in open_run)
    assert caveats(replace(with_results(), notes=["A note."]))[-1] == "A note."


def test_a_gain_in_format_alone_is_named():
    def told(low):
        formed = {"value": 0.05, "low": low, "high": 0.2, "n": 8}
        closer = {"value": -0.07, "low": -0.1, "high": -0.04, "n": 8}
        pairs = [
            {"before": "sft", "after": "roboalign", "prefix_formed": formed, "l1_formed": closer}
        ]
        said = [
            line
            for line in caveats(replace(with_results(), mllm_pairs=pairs))
            if "more than the format" in line
        ]
        return said[0] if said else ""

    assert "L1 there by" in told(-0.1) and "0.07" in told(-0.1)
    assert not told(0.01)


def test_limits_of_a_model_that_does_not_look_and_whose_reasoning_is_idle():
    def estimate(value, low, high):
        return {"value": value, "low": low, "high": high, "n": 50}

    same, lower = estimate(0.0, -0.05, 0.05), estimate(-0.2, -0.3, -0.1)
    actions = {
        "think": {
            "prefix": estimate(0.1, 0, 0.2),
            "wrong_length": estimate(0.6, 0.5, 0.7),
            "l1_all": estimate(0.6, 0.5, 0.7),
        },
        "direct": {"prefix": estimate(0.3, 0.2, 0.4)},
    }
    shy = {
        "actions": actions,
        "baselines": {"mean_action_l1": estimate(0.5, 0.4, 0.6)},
        "image_shuffle": {"drop": same},
        "reasoning": {"emptied_minus_kept": same, "swapped_minus_kept": lower},
    }
    before = {
        **shy,
        "actions": {
            **actions,
            "think": {**actions["think"], "wrong_length": estimate(0.4, 0.3, 0.5)},
        },
    }
    run = replace(
        with_results(),
        arms=[
            ArmSummary("sft", "SFT", mllm=before),
            ArmSummary("roboalign", "RoboAlign", mllm=shy),
        ],
    )
    text = " ".join(caveats(run))
    assert "looks at the image" in text
    assert "emptying it" in text and "swapping it" not in text
    assert "rose from 40.0% to 60.0%" in text
    assert "no better than the mean action's" in text
    assert "answering directly has prefix accuracy 0.300" in text


def test_plots_are_described_themed_and_deterministic():
    lines = {"a": [(1, 0.5), (2, 0.25)], "b": [(i, 1.0 / i) for i in range(1, 90)]}
    svg = line_plot("KL & <loss>", lines)
    assert svg == line_plot("KL & <loss>", lines)
    assert 'aria-label="KL &amp; &lt;loss&gt;: a from 0.5 to 0.25 in 2 points' in svg
    assert "var(--line-1)" in svg and "var(--line-2)" in svg
    assert not re.search(r"#0[0-9a-f]{5}|https?:", svg)
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    empty = {"value": None, "low": None, "high": None, "n": 0}
    assert "SFT 50.0% (40.0–60.0)" in interval_plot(
        "Success", [("SFT", estimate), ("RL", empty)], kind="percent"
    )


def test_a_model_that_never_acts_is_shown_without_numbers_it_has_not(tmp_path):
    silent = [
        {
            **record,
            "well_formed": False,
            "has_action": False,
            "decoded": False,
            "l1": None,
            "prefix": 0.0,
        }
        for record in answers("sft")
        if record["probe"] == "action"
    ]
    run = RunSummary(name="silent", arms=[ArmSummary("sft", "SFT", mllm=summarize(silent))])
    write_report(run, tmp_path / "report.html")
    text = " ".join(Page((tmp_path / "report.html").read_text()).texts)
    assert "n = 0" in text
    assert not re.search(r"\bnan\b|\bNone\b", text)
