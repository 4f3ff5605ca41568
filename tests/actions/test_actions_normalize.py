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
def test_round_trip_inside_the_quantiles(actions):
    stats = ActionStats.fit(actions)
    inside = np.clip(actions, stats.q01, stats.q99)
    normalized = stats.normalize(actions)
    assert np.abs(normalized).max() <= 1.0
    back = stats.denormalize(normalized)
    varying = ~stats.constant
    tolerance = 2e-6 * (np.abs(stats.q01) + np.abs(stats.q99) + 1e-3)[varying]
    assert (np.abs(back - inside)[:, varying] <= tolerance).all()
    assert np.array_equal(
        back[:, ~varying], np.broadcast_to(stats.mean.astype(np.float32), back.shape)[:, ~varying]
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_is_refused_with_dimension_and_count(bad):
    actions = np.random.default_rng(0).normal(size=(20, 3))
    stats = ActionStats.fit(actions)
    actions[[3, 7], 2] = bad
    for call in (ActionStats.fit, stats.normalize, stats.denormalize):
        with pytest.raises(RoboAlignError, match="2 in dimension 2"):
            call(actions)


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
