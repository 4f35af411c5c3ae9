"""Exit codes: which of several ranks decides."""

from finetune_api.exit_codes import END_RULES, REASONS, ExitCode, strongest


def test_the_strongest_code_decides() -> None:
    assert strongest([0, 0]) == 0
    assert strongest([0, 1]) == 1
    assert strongest([1, 70, 75, 65]) == ExitCode.INVALID_DATA
    assert strongest([78, 137]) == 78
    named = {code for rule in END_RULES for code in rule.codes if code in set(ExitCode)}
    assert named == set(ExitCode) - {ExitCode.DONE}


def test_every_code_has_a_reason() -> None:
    assert set(REASONS) == set(ExitCode)
