"""Metrics of two evaluations compared: paired by sample, mode and training seed, clustered by frame."""

import pytest

from roboalign.evaluate.token_metrics import compare_metrics, reasoned_minus_direct, summarize


def test_compare_averages_training_seeds_within_a_sample():
    base = {
        "probe": "action",
        "mode": "direct",
        "decoded": True,
        "l1": 0.1,
        "l1_mean_action": 0.5,
        "well_formed": True,
    }
    before = [{**base, "id": i, "run_seed": 0, "prefix": 0.0} for i in range(4)]
    after = [
        {**base, "id": i, "run_seed": seed, "prefix": float(seed)}
        for i in range(4)
        for seed in (0, 1)
    ]
    difference = compare_metrics(before, after)["prefix_direct"]
    assert (difference["value"], difference["n"]) == (0.5, 4)


def answer(sample, mode, prefix, *, run_seed=0, well_formed=True, l1=0.2):
    return {
        "probe": "action",
        "id": sample,
        "mode": mode,
        "prefix": prefix,
        "l1": l1,
        "decoded": True,
        "well_formed": well_formed,
        "run_seed": run_seed,
    }


def test_the_gain_beyond_the_format_is_taken_where_both_are_well_formed():
    before = [
        answer("a", "think", 0.2),
        answer("b", "think", 0.0, well_formed=False),
        answer("c", "think", 0.4),
    ]
    after = [
        answer("a", "think", 0.5),
        answer("b", "think", 1.0),
        answer("c", "think", 0.9, well_formed=False),
    ]
    # A second training: here c is the only answer that is well formed on both sides.
    before += [answer("c", "think", 0.1, run_seed=1)]
    after += [answer("c", "think", 0.2, run_seed=1)]
    after[0]["l1"] = 0.1  # a: 0.2 -> 0.1; c: no change
    difference = compare_metrics(before, after)
    assert difference["prefix_formed"]["n"] == 2
    assert difference["prefix_formed"]["value"] == pytest.approx((0.3 + 0.1) / 2)
    assert difference["l1_formed"]["n"] == 2
    assert difference["l1_formed"]["value"] == pytest.approx((-0.1 + 0.0) / 2)


def test_reasoned_against_direct_is_paired_by_frame():
    rows = [
        answer("a", "direct", 0.5, l1=0.3),
        answer("a", "think", 0.7, l1=0.2),
        answer("b", "direct", 0.1, l1=0.5),
        answer("b", "think", 0.0, l1=0.8),
    ]
    gain = reasoned_minus_direct(rows)
    assert gain["prefix"]["n"] == 2 and gain["prefix"]["value"] == pytest.approx(0.05)
    assert gain["l1"]["value"] == pytest.approx(0.1)
    assert reasoned_minus_direct(rows[:1]) is None


def test_repeated_samples_are_clustered_not_counted_as_independent():
    row = {
        "probe": "vqa",
        "mode": "direct",
        "kind": "general",
        "type": "x",
        "chance": 0.5,
        "prior": 0.0,
        "text_prior": 0.0,
        "answered": True,
    }
    once = [{**row, "id": i, "run_seed": 0, "score": float(i % 2)} for i in range(40)]
    thrice = [{**r, "run_seed": seed} for r in once for seed in range(3)]
    one, many = (summarize(records)["vqa"]["direct"]["accuracy"] for records in (once, thrice))
    assert many["n"] == 120
    assert many["high"] - many["low"] > 0.9 * (one["high"] - one["low"])
