"""Which tokens may complete a stop text: never one too few, and no action token."""

from hypothesis import given
from hypothesis import strategies as st

from roboalign.mllm.ending import may_complete


@given(st.text("</ans>x", max_size=6), st.text("</ans>x", min_size=1, max_size=8))
def test_every_token_that_completes_a_stop_text_is_found(before: str, piece: str) -> None:
    """`before` has no stop text, and with the token it has: so the token may complete it."""
    for stop in ("</a>", ">", "ans"):
        if stop not in before and stop in before + piece:
            assert may_complete(piece, stop)


def test_by_hand() -> None:
    stop = "</answer>"
    assert [
        piece
        for piece in (">", "r>", "r>.", "</answer>", "x</answer>y", "<0x3E>")
        if not may_complete(piece, stop)
    ] == []
    assert [
        piece
        for piece in ("<action_7>", "->", "er", "<0x3C>", "</think>")
        if may_complete(piece, stop)
    ] == []
    assert may_complete("?\u0120Left", " Left")  # a space has other spellings: its "t" decides
