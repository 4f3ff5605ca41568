import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from roboalign.actions.normalize import ActionStats
from roboalign.core.errors import RoboAlignError

NORM_STATS = Path(__file__).parents[2].parent / "shared/data/norm_stats"


def test_golden_values():
    stats = ActionStats.fit(np.stack([np.arange(101.0), np.full(101, 0.3)], axis=1))
    assert stats.q01.tolist() == [1.0, 0.3] and stats.q99.tolist() == [99.0, 0.3]
    assert (
        stats.mean[0] == 50.0
        and stats.minimum[0] == 0.0
        and stats.maximum[0] == 100.0
        and stats.count == 101
    )
    assert stats.std[0] == pytest.approx(np.sqrt((101**2 - 1) / 12))
    normalized = stats.normalize([[1.0, 0.3], [50.0, 7.0], [99.0, 0.3], [100.0, 0.3], [-40.0, 0.3]])
    assert normalized[:, 0].tolist() == [-1.0, 0.0, 1.0, 1.0, -1.0]  # q01, middle, q99, beyond both
    assert normalized[:, 1].tolist() == [0.0] * 5  # a constant dimension
    assert normalized.dtype == np.float32
    assert stats.denormalize([[0.5, -0.8]])[0].tolist() == pytest.approx([74.5, 0.3])


@pytest.mark.parametrize(("noise", "constant"), [(1e-8, True), (1e-4, False)])
def test_near_constant_dimension_does_not_explode(noise, constant):
    rng = np.random.default_rng(0)
    actions = np.stack([rng.normal(size=500), 0.5 + noise * rng.normal(size=500)], axis=1)
    stats = ActionStats.fit(actions)
    assert stats.constant.tolist() == [False, constant]
    assert np.abs(stats.normalize(actions)).max() <= 1.0
    assert stats.denormalize(stats.normalize(actions))[:, 1] == pytest.approx(
        0.5, abs=5 * noise + 1e-6
    )


def test_threshold_grows_with_the_magnitude():
    assert ActionStats.fit(np.array([[1000.0], [1000.0005]])).constant.tolist() == [True]
    assert ActionStats.fit(np.array([[1000.0], [1000.1]])).constant.tolist() == [False]


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, (30, 3), elements=st.floats(-1e3, 1e3)))
def test_round_trip_inside_the_interval(actions):
    stats = ActionStats.fit(actions)
    inside = np.clip(actions, *stats.interval)
    normalized = stats.normalize(actions)
    assert np.abs(normalized).max() <= 1.0
    back = stats.denormalize(normalized)
    varying = ~stats.constant
    tolerance = 2e-6 * sum(np.abs(end) + 1e-3 for end in stats.interval)[varying]
    assert (np.abs(back - inside)[:, varying] <= tolerance).all()
    assert np.array_equal(
        back[:, ~varying], np.broadcast_to(stats.mean.astype(np.float32), back.shape)[:, ~varying]
    )


def sparse_gripper() -> np.ndarray:
    """[600, 2]: a usual dimension, and a gripper that is told to move in 4 steps of 600."""
    actions = np.stack([np.linspace(-1, 1, 600), np.zeros(600)], axis=1)
    actions[75::150, 1] = 1.0
    return actions


def test_a_sparse_dimension_keeps_its_information():
    actions = sparse_gripper()
    stats = ActionStats.fit(actions)
    assert stats.q01[1] == stats.q99[1] == 0.0 and stats.sparse.tolist() == [False, True]
    assert not stats.constant.any()
    normalized = stats.normalize(actions)
    assert normalized[74:77, 1].tolist() == [-1.0, 1.0, -1.0]
    assert np.array_equal(stats.denormalize(normalized)[:, 1], actions[:, 1])
    assert stats.notes(["x", "gripper"]) == [
        "dimension 1 (gripper): its 1% and 99% quantiles are both 0, its values go from 0 to 1; "
        "it is normalized by minimum and maximum"
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-50, 50), st.floats(1e-3, 50), st.sets(st.integers(0, 999), min_size=1, max_size=9)
)
def test_any_sparse_dimension_round_trips(usual, apart, steps):
    values = np.full((1000, 1), usual)
    values[sorted(steps)] += apart
    stats = ActionStats.fit(values)
    assert stats.sparse.all()
    assert stats.denormalize(stats.normalize(values)) == pytest.approx(values, rel=1e-5, abs=1e-5)


def test_usual_dimensions_are_the_same_beside_a_sparse_one():
    actions = sparse_gripper()
    alone = ActionStats.fit(actions[:, :1]).normalize(actions[:, :1])
    assert np.array_equal(ActionStats.fit(actions).normalize(actions)[:, :1], alone)
    low, high = np.quantile(actions[:, 0], [0.01, 0.99])
    by_hand = np.clip(2.0 * (actions[:, 0] - low) / (high - low) - 1.0, -1, 1).astype(np.float32)
    assert np.array_equal(alone[:, 0], by_hand)


def test_methods_and_clip_by_hand():
    actions = np.arange(101.0)[:, None]
    given = np.array([[0.0], [50.0], [100.0], [150.0]])

    def normalized(**settings):
        return ActionStats.fit(actions, **settings).normalize(given)[:, 0].tolist()

    assert normalized(method="min_max") == [-1.0, 0.0, 1.0, 1.0]
    assert normalized(method="min_max", clip=False) == [-1.0, 0.0, 1.0, 2.0]
    assert normalized(clip=False) == pytest.approx([-50 / 49, 0, 50 / 49, 100 / 49])
    std = np.sqrt((101**2 - 1) / 12)
    assert normalized(method="mean_std") == pytest.approx([-50 / std, 0, 50 / std, 100 / std])
    stats = ActionStats.fit(actions, method="mean_std")
    assert stats.denormalize([[2.0]]) == pytest.approx(50 + 2 * std)


def test_constant_dimensions_are_named():
    actions = np.stack([np.arange(9.0), np.full(9, 0.5), np.full(9, 2.0)], axis=1)
    assert ActionStats.fit(actions).notes() == [
        "constant, normalized to 0, decoded to the mean: dimension 1, 2"
    ]


def test_settings_travel_and_the_usual_ones_are_not_written():
    stats = ActionStats.fit(np.eye(3), method="min_max", clip=False)
    again = ActionStats.from_dict(json.loads(json.dumps(stats.to_dict())))
    assert (again.method, again.clip) == ("min_max", False)
    assert set(ActionStats.fit(np.eye(3)).to_dict()) == {
        "q01",
        "q99",
        "mean",
        "std",
        "minimum",
        "maximum",
        "count",
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_is_refused_with_dimension_and_count(bad):
    actions = np.random.default_rng(0).normal(size=(20, 3))
    stats = ActionStats.fit(actions)
    actions[[3, 7], 2] = bad
    for call in (ActionStats.fit, stats.normalize, stats.denormalize):
        with pytest.raises(RoboAlignError, match="2 in dimension 2"):
            call(actions)


@pytest.mark.usefixtures("shapes_unchecked")
def test_wrong_shapes_are_refused():
    stats = ActionStats.fit(np.eye(3))
    with pytest.raises(RoboAlignError, match="3 dimensions"):
        stats.normalize(np.zeros((4, 2)))
    for shape in [(0, 3), (3,), (2, 2, 2), (3, 0)]:
        with pytest.raises(RoboAlignError, match="shape"):
            ActionStats.fit(np.zeros(shape))


def test_dict_round_trip_through_json():
    stats = ActionStats.fit(np.random.default_rng(0).normal(size=(50, 4)))
    again = ActionStats.from_dict(json.loads(json.dumps(stats.to_dict())))
    assert again.count == 50 and all(
        np.array_equal(getattr(again, k), getattr(stats, k)) for k in ("q01", "mean")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q01": None}, "q01"),
        ({"q01": [0.0, 1.0]}, "length"),
        ({"q01": [9.0, 0.0, 0.0]}, "q01 > q99 in dimension 0"),
        ({"q99": [0.0, float("nan"), 0.0]}, "q99: not finite in dimension 1"),
        ({"mean": ["a", 0.0, 0.0]}, "mean: not a list of numbers"),
        ({"mean": [[0.0, 0.0, 0.0]]}, "shape"),
        ({"std": [-1.0, 0.0, 0.0]}, "std is negative"),
        ({"minimum": [0.0, 9.0, 0.0]}, "minimum > maximum in dimension 1"),
        ({"count": 0}, "count"),
        ({"count": 1.5}, "count"),
        ({"surplus": 1}, "unknown field `surplus`"),
        ({"method": "guess"}, "method is 'guess', not one of quantiles, min_max, mean_std"),
        ({"clip": 1}, "clip is 1, not true or false"),
    ],
)
def test_from_dict_names_file_and_field(change, message):
    good = ActionStats.fit(np.random.default_rng(0).normal(size=(50, 3))).to_dict()
    with pytest.raises(RoboAlignError, match=message) as caught:
        ActionStats.from_dict({**good, **change}, where="policy.json")
    assert "policy.json" in str(caught.value)


@pytest.mark.parametrize("field", ["q01", "q99", "mean", "std", "minimum", "maximum", "count"])
def test_from_dict_names_the_missing_field(field):
    values = ActionStats.fit(np.eye(2)).to_dict()
    del values[field]
    with pytest.raises(RoboAlignError, match=f"missing field `{field}`"):
        ActionStats.from_dict(values)


@pytest.mark.skipif(
    not NORM_STATS.is_dir(), reason="the peers' normalisation statistics are not here"
)
@pytest.mark.parametrize("name", ["bridge", "calvin", "libero"])
def test_peers_statistics_map_their_quantiles_to_the_ends(name):
    (peer,) = json.loads((NORM_STATS / f"{name}.json").read_text())["norm_stats"].values()
    stats = ActionStats.from_dict(
        {k: peer[k] for k in ("q01", "q99", "mean", "std")}
        | {
            "minimum": peer.get("min", peer["q01"]),
            "maximum": peer.get("max", peer["q99"]),
            "count": 1,
        }
    )
    varying = ~stats.constant
    assert varying.any()
    ends = stats.normalize(np.stack([stats.q01, stats.q99]))[:, varying]
    assert ends[0] == pytest.approx(-1) and ends[1] == pytest.approx(1)
    raw = stats.q01 + 0.37 * (stats.q99 - stats.q01)
    assert stats.denormalize(stats.normalize(raw))[varying] == pytest.approx(
        raw[varying], rel=1e-5, abs=1e-7
    )
