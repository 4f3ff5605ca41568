"""The power calculation and the analysis of docs/evidence/plan.md, on made-up records with numbers by hand."""

import json
import math
from pathlib import Path

import pytest
from scipy.stats import norm

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json, write_text
from roboalign.run.load import dump_recipe
from roboalign.run.recipe import Recipe
from studies import hypotheses, power

SEEDS = (10, 11, 12)


def lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def episodes(solved: int, count: int, **also: str) -> list[dict]:
    """Episodes of one task; the first `earlier` are solved by everybody and must not count."""
    return [
        {"task": "t", "seed": 1_000_000 + i, "success": i >= count - solved, "crash": None, **also}
        for i in range(count)
    ]


@pytest.fixture
def run(tmp_path: Path) -> hypotheses.Records:
    """Heads gain 0.1, 0.2 and 0.3 by RL over SFT, 0 over extra SFT; thinking gains 0.2 in each."""
    arms = ("sft", "roboalign", "extra-sft", "sft-online", "roboalign-online")
    recipe = Recipe.model_validate({"name": "x", "arms": arms, "seeds": SEEDS})
    write_text(tmp_path / "recipe.yaml", dump_recipe(recipe))
    earlier = hypotheses.EARLIER_STATES
    for seed, gain in zip(SEEDS, (1, 2, 3), strict=True):
        folder = tmp_path / f"seed-{seed}"
        for arm, solved in (("sft", 2), ("roboalign", 2 + gain), ("extra-sft", 2 + gain)):
            rows = episodes(solved, earlier["metaworld"] + 10)
            for row in rows[: earlier["metaworld"]]:  # would change the difference
                row["success"] = arm == "sft"
            lines(folder / "eval/rollouts" / arm / "episodes.jsonl", rows)
        for arm, solved in (("sft-tokens-think", 1), ("roboalign-tokens-think", 3)):
            rows = episodes(solved, earlier["closed-loop"] + 10, variant="itself")
            rows += episodes(5, earlier["closed-loop"] + 10, variant="reasoning 0")
            lines(tmp_path / "curves" / f"seed-{seed}" / arm / "episodes.jsonl", rows)
        for arm, success in (("sft-online", (0.0, 0.5)), ("roboalign-online", (0.5, 1.0))):
            rows = [
                {"episodes": 10, "success": success[0]},
                {"episodes": 30 if arm == "sft-online" else 20, "success": success[1]},
            ]
            lines(folder / "online" / arm / "metrics.jsonl", rows)
    return hypotheses.open_records(tmp_path, tmp_path / "curves", None)


def test_estimates_by_hand(run: hypotheses.Records) -> None:
    rows = {
        (row["hypothesis"], row["before"], row["after"], row["source"]): row
        for row in hypotheses.analyse(run)
    }
    gained = rows["H3", "sft", "roboalign", "rollouts"]
    assert gained["each"] == pytest.approx([0.1, 0.2, 0.3]) and gained["seeds"] == list(SEEDS)
    half = 4.302653 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom at 97.5%
    assert (gained["low"], gained["high"]) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)
    assert gained["p_holm"] == pytest.approx(2 * 0.0741799) and gained["verdict"] == "open"
    assert rows["H3", "extra-sft", "roboalign", "rollouts"]["verdict"].startswith("open: 3 seeds")
    thinks = rows["H1", "sft-tokens-think", "roboalign-tokens-think", "think"]
    assert thinks["each"] == pytest.approx([0.2] * 3)
    modes = rows["H1", "roboalign-tokens-think", "roboalign-tokens-think", "modes"]
    assert modes["each"] == pytest.approx([-0.2] * 3)
    # Up to 20 rollouts: (10 x 0 + 10 x 0.5) / 20 against (10 x 0.5 + 10 x 1) / 20.
    curve = rows["H2", "sft-online", "roboalign-online", "curve"]
    assert curve["each"] == pytest.approx([0.5] * 3)
    text = "\n".join(map(hypotheses.line, rows.values()))
    assert (
        "H3 rollouts: roboalign minus sft: +20.0 points (-4.8 to +44.8), 3 training seeds" in text
    )
    assert "H4 probe: roboalign minus sft: not measured" in text


def test_the_probe_is_read_by_training_seed(run: hypotheses.Records, tmp_path: Path) -> None:
    shares = {("base", None): 0.4, **{("sft", seed): 0.4 + seed / 1000 for seed in SEEDS}}
    backbones = [
        {"arm": arm, "seed": seed, "layers": {"2": {"accuracy": {"value": share}}}}
        for (arm, seed), share in shares.items()
    ]
    write_json(tmp_path / "probe.json", {"head_layer": 2, "backbones": backbones})
    records = hypotheses.open_records(run.run, None, tmp_path / "probe.json")
    row = next(one for one in hypotheses.analyse(records) if one["hypothesis"] == "H4")
    assert (
        row["each"] == pytest.approx([0.010, 0.011, 0.012])
        and row["verdict"] == "holds, below what matters"
    )


@pytest.mark.parametrize(
    ("low", "high", "p", "found"),
    [
        (0.02, 0.3, 0.01, "holds"),
        (0.02, 0.3, 0.2, "open"),
        (-0.1, 0.09, 0.9, "refuted"),
        (-0.1, 0.2, 0.5, "open"),
    ],
)
def test_verdicts(low: float, high: float, p: float, found: str) -> None:
    claim = hypotheses.Claim("H1", "a", "b", "think")
    assert hypotheses.verdict(claim, low, high, p, 10) == found


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RoboAlignError, match="no run here"):
        hypotheses.open_records(tmp_path, None, None)


def test_power_of_known_cases() -> None:
    """Many seeds: the normal approximation. The limit of 2 degrees of freedom: by its closed form."""
    effect, seeds = 0.1, 400
    about = norm.cdf(effect * math.sqrt(seeds) / 0.7 - norm.ppf(0.975))
    assert power.power(seeds, effect, 0.7, 0.05) == pytest.approx(about, abs=2e-3)
    assert power.upper_limit(1.0, 2) == pytest.approx(math.sqrt(2 / (-2 * math.log(0.8))))
    assert power.seeds_needed(0.1, 0.001, alpha=0.05, wanted=0.8) == 2
    assert power.seeds_needed(0.001, 1.0, alpha=0.05, wanted=0.8) is None


def test_the_plan_s_numbers_are_those_of_the_records() -> None:
    root = Path(__file__).parents[1]
    found = power.study(root / "docs/results/metaworld", 0.0125, 0.8)
    plan = (root / "docs/evidence/plan.md").read_text()
    for line in found[-10:]:
        assert line.strip() in plan
