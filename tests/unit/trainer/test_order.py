"""How many steps a job has."""

import pytest
from finetune_trainer.data import order


@pytest.mark.parametrize(
    ("rows", "epochs", "steps"), [(10, 1.1, 11), (10, 1.15, 12), (10, 0.001, 1), (10, 3, 30), (100, 1.1, 110)]
)
def test_epochs_in_steps(rows: int, epochs: float, steps: int) -> None:
    """1.1 * 10 is 11.000000000000002, which must not cost a step."""
    assert order.total_steps(rows, 1, epochs, None) == steps
