"""How an out-of-memory error is explained; `tests/run/test_out_of_memory.py` has a real one."""

import pytest
import torch

from lsp.core.errors import UserError
from lsp.data.batches import Share
from lsp.models.interface import LanguageModel
from lsp.models.memory import MemoryConfig
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.runtime import Runtime
from lsp.training import out_of_memory
from lsp.training.out_of_memory import Needs, explain, explained, is_out_of_memory
from tests.training.tiny import LENGTH, longformer, reformer

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free. If reserved but"
HOST = "[enforce fail at alloc_cpu.cpp:1] err == 0. DefaultCPUAllocator: can't allocate memory: 5"


def needs(residual: str = "stored", *, strategy: str = "ddp", world: int = 4, **changes) -> Needs:
    memory = MemoryConfig(residual)
    values = {
        "model": reformer(memory=memory, num_attention_heads=4),
        "memory": memory,
        "parallelism": ParallelismConfig(strategy=strategy),
        "precision": PrecisionConfig(),
        "optimizer": "AdamW",
        "share": Share(0, world, 24 * world, 12),
        "length": LENGTH,
        "place": Runtime(torch.device("cpu"), 0, world),
    }
    return Needs(**values | changes)


def overrides(of: Needs) -> list[str]:
    return [remedy.override for remedy in of.remedies()]


def test_the_most_effective_comes_first():
    found = needs().remedies()
    assert {r.override for r in found[:2]} == {"trainer.micro_batch=1", "memory=reversible"}
    assert [r.saving for r in found] == sorted((r.saving for r in found), reverse=True)
    assert all(remedy.saving > 0 for remedy in found)


def test_savings_are_differences_of_estimates():
    now, saving = needs(), {r.override: r.saving for r in needs().remedies()}
    total = sum(now.parts().values())
    assert total - saving["memory=reversible"] == sum(needs("reversible").parts().values())
    fewer = needs(share=Share(0, 4, 96, 1))
    assert total - saving["trainer.micro_batch=1"] == sum(fewer.parts().values())
    assert total - saving["trainer.micro_batch=6"] == sum(
        needs(share=Share(0, 4, 96, 6)).parts().values()
    )


def test_only_what_can_be_given_is_advised():
    assert "parallelism.sequence=2" in overrides(needs())
    assert "parallelism.sequence=2" not in overrides(needs(world=3))
    assert "parallelism.sequence=2" not in overrides(needs(strategy="single", world=1))
    # The next degree would need more heads than there are.
    shared = Share(0, 2, 48, 12, 0, 4)
    assert not [o for o in overrides(needs(share=shared, world=8)) if "sequence" in o]
    assert not [o for o in overrides(needs("reversible")) if o.startswith("memory=")]
    assert not [o for o in overrides(needs(optimizer="Muon")) if "zero" in o]
    assert "precision=bf16" not in overrides(needs(precision=PrecisionConfig("bf16")))
    single_row = needs(share=Share(0, 4, 4, 1))
    assert not [o for o in overrides(single_row) if "micro_batch" in o]


def test_strategies_are_advised_where_weights_are_what_is_large(monkeypatch):
    monkeypatch.setattr(Needs, "parameters", 8_000_000_000)
    assert overrides(needs())[:3] == ["parallelism=zero3", "parallelism=zero2", "parallelism=zero1"]
    # On a GPU the host is another place.
    on_gpu = needs(place=Runtime(torch.device("cuda", 0), 0, 4))
    assert overrides(on_gpu)[0] == "parallelism=zero3_offload"


def test_what_suffices_by_itself_is_marked(monkeypatch):
    of = needs()
    total = sum(of.parts().values())
    saving = {r.override: r.saving for r in of.remedies()}
    enough = total - saving["memory=reversible"] + 1
    monkeypatch.setattr(out_of_memory, "_capacity", lambda device: enough)
    lines = explain(torch.OutOfMemoryError(CUDA), of, "step 1").splitlines()
    marked = [line for line in lines if line.endswith("enough by itself")]
    assert any("memory=reversible" in line for line in marked)
    assert not any("trainer.micro_batch=6" in line for line in marked)


def test_nothing_helps(monkeypatch):
    monkeypatch.setattr(Needs, "remedies", lambda self: [])
    text = explain(torch.OutOfMemoryError(CUDA), needs(), "step 1")
    assert text.endswith("only a shorter sequence_length or a smaller model needs less")
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free)" in text


def test_the_longformer_is_advised_what_it_can_do():
    found = overrides(needs(model=longformer("stored")))
    assert {"memory=recomputed", "trainer.micro_batch=1"} <= set(found[:3])
    assert not [o for o in found if "reversible" in o or "attention_groups" in o]


def test_an_architecture_that_cannot_tell(monkeypatch):
    model = longformer("stored")
    monkeypatch.setattr(type(model), "activation_bytes", LanguageModel.activation_bytes)
    of = needs(model=model)
    assert of.activations() == {}
    lines = explain(torch.OutOfMemoryError(CUDA), of, "step 1").splitlines()
    (advice,) = [i for i, line in enumerate(lines) if "cannot estimate. These need less:" in line]
    assert "trainer.micro_batch=1, trainer.micro_batch=6, memory=recomputed," in lines[advice + 1]
    assert "reversible" not in lines[advice + 1]  # which this architecture is not


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(CUDA), True),
        (RuntimeError(HOST), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
        (UserError("out of memory"), False),
    ],
    ids=["cuda", "host", "python", "bug", "told"],
)
def test_what_is_explained(error, expected):
    assert is_out_of_memory(error) is expected
    raises = pytest.raises(UserError if expected else type(error))
    with raises as raised, explained(needs(), lambda: "step 7"):
        raise error
    assert ("step 7" in str(raised.value)) is expected


def test_others_leave_without_a_word():
    with pytest.raises(SystemExit, match="2"), explained(needs(), lambda: "", lambda: False):
        raise MemoryError


def test_state_that_the_first_step_makes():
    model = needs().model
    count = sum(p.numel() for p in model.parameters())
    assert needs().first_step_bytes == 8 * count
    assert needs(strategy="zero2").first_step_bytes == 8 * -(-count // 4)
    assert needs(fresh=False).first_step_bytes == 0
    assert needs(strategy="zero2_offload").first_step_bytes == 0
