"""The picture of a run."""

import warnings

import pytest

from lsp.training.plot import plot_losses

CAUSAL = [{"step": n, "bits_per_byte": 8 / n, "validation_bits_per_byte": None} for n in (1, 2, 3)]
MASKED = [{"step": n, "bits_per_byte": None, "loss": 5 / n} for n in (1, 2)]


@pytest.mark.parametrize(
    "rows",
    [CAUSAL, [*CAUSAL, {"step": 4, "validation_bits_per_byte": 3.0}], MASKED, []],
    ids=["training", "validation-too", "masked", "nothing-logged"],
)
def test_writes_a_png(tmp_path, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plot_losses(rows, tmp_path / "loss.png", 4.5)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
