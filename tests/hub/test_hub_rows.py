"""Every row of the table out into a folder, and opened by the published class."""

import pytest

from lsp.models.hub.build import build
from lsp.models.hub.table import ROWS
from tests.hub.hub_models import assert_opens_alike
from tests.hub.tiny import shaken
from tests.models.hub.tiny import LENGTH, SPECIAL_IDS, settled


def cases():
    """Each row with what its paper trains it for; the other classes take as long again."""
    for name, row in ROWS.items():
        first, *_ = row.objectives
        classes = {head: objective for objective, head in reversed(row.heads.items())}
        for objective in classes.values():
            quick = row.heads[objective] == row.heads[first]
            marks = () if quick else pytest.mark.slow
            yield pytest.param(
                name, first if quick else objective, id=f"{name}-{objective}", marks=marks
            )


@pytest.mark.parametrize(("model_type", "objective"), cases())
def test_opens_in_plain_transformers(tmp_path, model_type, objective):
    config = settled(model_type, objective)
    if start := ROWS[model_type].start:
        config.settled["decoder_start_token_id"] = SPECIAL_IDS[start]
    model = shaken(build(config))
    assert_opens_alike(model, tmp_path, LENGTH)
