import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.fft import dct, idct
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from roboalign.actions.fast import DecodeFailure, FastTokenizer
from roboalign.core.errors import RoboAlignError

FAST_PLUS = Path(__file__).parents[2].parent / "shared/data/fast_plus"
needs_fast_plus = pytest.mark.skipif(
    not FAST_PLUS.is_dir(), reason="the published FAST+ is not here"
)


def smooth_chunks(n: int, horizon: int = 8, dim: int = 4, seed: int = 0) -> np.ndarray:
    """Random low-frequency trajectories inside [-1, 1]."""
    rng = np.random.default_rng(seed)
    frequency, time = np.arange(3), np.arange(horizon) / horizon
    waves = np.cos(np.pi * frequency[:, None] * time)
    return np.clip(np.einsum("nkd,kt->ntd", rng.normal(scale=0.4, size=(n, 3, dim)), waves), -1, 1)


@pytest.fixture(scope="module")
def fast() -> FastTokenizer:
    return FastTokenizer.fit(smooth_chunks(600), scale=4, vocab_size=256)


def test_coefficients_are_the_rounded_dct_low_frequency_first(fast):
    chunk = smooth_chunks(1, seed=1)
    found = fast.coefficients(fast.encode(chunk)[0])
    # The orthonormal DCT-II written out: X_k = sqrt((1 + [k > 0]) / H) sum_t x_t cos(pi (t + 1/2) k / H).
    time = np.arange(8) + 0.5
    rows = [
        np.sqrt((1 + (k > 0)) / 8) * (chunk[0] * np.cos(np.pi * time * k / 8)[:, None]).sum(axis=0)
        for k in range(8)
    ]
    assert np.array_equal(found.reshape(8, 4), np.around(4 * np.stack(rows)))


def test_constant_chunk_by_hand(fast):
    chunk = np.zeros((1, 8, 4))
    chunk[0, :, 1] = (
        0.5  # c_0 = 0.5 * sqrt(8) = 1.414; 4 * 1.414 = 5.66 -> 6; back: 6 / 4 / sqrt(8) = 0.5303
    )
    ids = fast.encode(chunk)[0]
    assert fast.coefficients(ids).tolist() == [0, 6, 0, 0] + [0] * 28
    assert fast.decode(ids)[:, 1] == pytest.approx(np.full(8, 1.5 / np.sqrt(8)))
    assert (fast.decode(ids)[:, [0, 2, 3]] == 0).all()


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (3, 8, 4), elements=st.floats(-1, 1)))
def test_round_trip_error_is_bounded_by_the_rounding(chunks):
    fast = FastTokenizer.fit(chunks, scale=10, vocab_size=400)
    for chunk, back in zip(chunks, fast.decode_batch(fast.encode(chunks))):
        assert back.shape == (8, 4) and back.dtype == np.float32
        # The DCT is orthonormal: the error in time has the norm of the rounding error, <= 1/2 a coefficient.
        assert (np.linalg.norm(back - chunk, axis=0) <= 0.5 / 10 * np.sqrt(8) + 1e-5).all()
    assert fast.clipped == 0


def test_vocabulary_size_is_exact_or_says_that_merges_ran_out(fast):
    assert fast.vocab_size == fast.tokenizer.get_vocab_size() == 256
    few = FastTokenizer.fit(smooth_chunks(2), scale=4, vocab_size=4000)
    assert few.vocab_size == few.tokenizer.get_vocab_size() < 4000
    assert max(i for ids in fast.encode(smooth_chunks(50)) for i in ids) < 256


def test_bpe_compresses(fast):
    lengths = [len(ids) for ids in fast.encode(smooth_chunks(100, seed=3))]
    assert np.mean(lengths) < 32 / 2


def test_unseen_values_of_the_range_are_in_the_alphabet():
    """The alphabet covers every value from the least to the greatest, seen or not."""
    chunks = np.zeros((2, 2, 1))
    chunks[0], chunks[1] = 1.0, -1.0
    fast = FastTokenizer.fit(chunks, scale=50, vocab_size=400)
    for value in np.linspace(-1, 1, 31):
        (ids,) = fast.encode(np.full((1, 2, 1), value))
        assert fast.decode(ids) == pytest.approx(np.full((2, 1), value), abs=0.011)
    assert fast.clipped == 0


def test_values_beyond_the_range_are_clipped_and_counted(fast):
    before = fast.clipped
    chunk = np.full((1, 8, 4), 0.0)
    chunk[0, :, 0], chunk[0, :, 2] = 50.0, -50.0
    (ids,) = fast.encode(chunk)
    assert fast.clipped == before + 2
    assert fast.coefficients(ids)[[0, 2]].tolist() == [fast.max_token, fast.min_token]


def test_too_small_a_vocabulary_names_the_fix():
    with pytest.raises(
        RoboAlignError, match=r"vocabulary of 8.*raise vocab_size or lower the scale"
    ):
        FastTokenizer.fit(smooth_chunks(10), scale=10, vocab_size=8)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_chunks_are_refused(fast, bad):
    chunks = smooth_chunks(5)
    chunks[3, 2, 1] = bad
    for call in (fast.encode, lambda c: FastTokenizer.fit(c, scale=4, vocab_size=256)):
        with pytest.raises(RoboAlignError, match="1 of 5 chunks"):
            call(chunks)


@pytest.mark.usefixtures("shapes_unchecked")
def test_wrong_shapes_are_refused(fast):
    with pytest.raises(RoboAlignError, match="8 x 4"):
        fast.encode(smooth_chunks(2, horizon=9))
    with pytest.raises(RoboAlignError, match="shape"):
        fast.encode(smooth_chunks(2)[0])
    with pytest.raises(RoboAlignError, match="no chunk"):
        FastTokenizer.fit(np.zeros((0, 8, 4)), scale=4, vocab_size=256)
    assert fast.encode(np.zeros((0, 8, 4))) == []


def test_decode_failures_are_values_with_counts(fast):
    good = fast.encode(smooth_chunks(1))[0]
    n_last = len(fast.coefficients(good[-1:]))
    assert fast.decode(good[:-1]) == DecodeFailure("wrong number of coefficients", 32 - n_last, 32)
    assert fast.decode([]) == DecodeFailure("wrong number of coefficients", 0, 32)
    assert fast.decode([*good, good[0]]).n_coefficients == 32 + len(fast.coefficients(good[:1]))
    assert fast.decode([fast.vocab_size]) == DecodeFailure("unknown id", 0, 32)
    assert fast.decode([-1]).reason == "unknown id"
    assert fast.coefficients([fast.vocab_size]).reason == "unknown id"


def test_half_a_character_is_invalid_text():
    wide = FastTokenizer.fit(
        np.array([[[-1.0]], [[1.0]]]), scale=300, vocab_size=400
    )  # offsets above 127: two bytes
    lead = wide.tokenizer.token_to_id("Ä")  # the byte 0xC4 alone
    assert lead is not None
    assert wide.decode([lead]).reason == "invalid text"


def test_batch_equals_one_by_one(fast):
    ids = fast.encode(smooth_chunks(20, seed=5))
    batch = [*ids[:10], [9999], ids[10][:-1], *ids[10:]]
    for one, both in zip((fast.decode(i) for i in batch), fast.decode_batch(batch), strict=True):
        assert type(one) is type(both)
        assert np.array_equal(one, both) if isinstance(one, np.ndarray) else one == both


def test_save_and_load_give_the_same_ids(fast, tmp_path):
    chunks = smooth_chunks(30, seed=7)
    fast.save(tmp_path / "fast")
    again = FastTokenizer.load(tmp_path / "fast")
    assert again.encode(chunks) == fast.encode(chunks)
    assert (
        again.horizon,
        again.action_dim,
        again.scale,
        again.min_token,
        again.max_token,
        again.vocab_size,
    ) == (
        fast.horizon,
        fast.action_dim,
        fast.scale,
        fast.min_token,
        fast.max_token,
        fast.vocab_size,
    )
    fast.save(tmp_path / "fast")  # over itself
    assert FastTokenizer.load(tmp_path / "fast", horizon=8, action_dim=4).encode(
        chunks[:1]
    ) == again.encode(chunks[:1])


def test_layout_loads_in_the_libraries_that_peers_use(fast, tmp_path):
    """Steps of the published processor on a saved folder: its tokenizer class, its decoding, its constants."""
    chunks = smooth_chunks(5, seed=8)
    fast.save(tmp_path / "fast")
    config = json.loads((tmp_path / "fast/processor_config.json").read_text())
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "fast")
    assert Tokenizer.from_file(str(tmp_path / "fast/tokenizer.json")).get_vocab_size() == 256
    for chunk, ids in zip(chunks, fast.encode(chunks)):
        offsets = (
            np.around(dct(chunk, axis=0, norm="ortho") * config["scale"]).astype(int)
            - config["min_token"]
        )
        assert theirs("".join(map(chr, offsets.flatten())))["input_ids"] == ids
        back = np.array([ord(c) for c in theirs.decode(ids)]) + config["min_token"]
        back = idct(
            back.reshape(config["time_horizon"], config["action_dim"]) / config["scale"],
            axis=0,
            norm="ortho",
        )
        assert fast.decode(ids) == pytest.approx(back, abs=1e-6)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("processor_config.json", None, "does not exist"),
        ("tokenizer.json", None, "does not exist"),
        ("processor_config.json", '{"scale": ', "not valid JSON"),
        ("tokenizer.json", '{"version": "1.0", "mod', "not a tokenizer"),
        ("processor_config.json", {"scale": None}, "`scale` must be a number"),
        ("processor_config.json", {"scale": 0}, "above 0"),
        ("processor_config.json", {"min_token": "x"}, "`min_token` must be a number"),
        ("processor_config.json", {"vocab_size": 7}, "tokenizer.json holds 256"),
        ("processor_config.json", {"time_horizon": None}, "horizon is not known"),
        ("processor_config.json", {"action_dim": 5}, "4 was asked for"),
    ],
)
def test_broken_folders_name_the_file(fast, tmp_path, file, text, message):
    fast.save(tmp_path / "fast")
    path = tmp_path / "fast" / file
    if text is None:
        path.unlink()
    elif isinstance(text, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | text))
    else:
        path.write_text(text)
    with pytest.raises(RoboAlignError, match=message) as caught:
        FastTokenizer.load(tmp_path / "fast", action_dim=4)
    assert file in str(caught.value)


@needs_fast_plus
def test_fast_plus_golden_ids():
    """The published vocabulary: 1434 spells 0, 5, 1 and 2003 spells 28 zeros and -1, 1, 0, 1.

    Padded with zeros to 2 x 32 and decoded, a peer reports 0, .3536, .0707, 0, 0 for the first five values. Without
    the padding 35 coefficients are no chunk.
    """
    fast = FastTokenizer.load(FAST_PLUS, horizon=2, action_dim=32)
    assert (fast.scale, fast.min_token, fast.vocab_size) == (10, -354, 2048)
    coefficients = fast.coefficients([2003, 1434])
    assert coefficients.tolist() == [0] * 28 + [-1, 1, 0, 1] + [0, 5, 1]
    assert fast.decode([2003, 1434]) == DecodeFailure("wrong number of coefficients", 35, 64)
    padded = fast.encode(
        idct(np.pad(coefficients, (0, 29)).reshape(1, 2, 32) / 10, axis=1, norm="ortho")
    )[0]
    assert padded[:2] == [2003, 1434]
    assert fast.decode(padded).flatten()[:5] == pytest.approx([0, 0.3536, 0.0707, 0, 0], abs=1e-4)


@needs_fast_plus
def test_fast_plus_round_trip_and_missing_shape():
    fast = FastTokenizer.load(FAST_PLUS, horizon=16, action_dim=7)
    chunks = smooth_chunks(40, horizon=16, dim=7)
    back = np.stack(fast.decode_batch(fast.encode(chunks)))
    assert (np.linalg.norm(back - chunks, axis=1) <= 0.05 * 4 + 1e-5).all() and fast.clipped == 0
    with pytest.raises(RoboAlignError, match="give horizon when loading"):
        FastTokenizer.load(FAST_PLUS)
