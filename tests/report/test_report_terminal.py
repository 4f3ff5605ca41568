"""What a run prints at its end."""

from synthetic_run import synthetic_run

from roboalign.report.terminal import format_end


def test_the_end_fits_80_columns_and_has_the_verdict_and_one_table(tmp_path) -> None:
    run = synthetic_run(tmp_path, b"")
    text = format_end(run)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert text.startswith("Action tokens, asked to reason: ")
    assert "Success of the policy: " in text and "Questions answered" in text
    for column in ("arm", "success", "reasoned action error", "kept answers"):
        assert column in text
    for arm in run.arms:
        assert any(arm.name in line for line in lines)
