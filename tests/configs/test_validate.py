"""Combinations that cannot work are refused before any heavy work, with values that would."""

import dataclasses

import pytest

from lsp.core.errors import UserError
from lsp.models import registry
from lsp.run.compose import load_train_config
from lsp.run.config import ImportConfig
from lsp.run.validate import require_run, validate, validate_data

HUB = "architecture=hub"
REFUSED = {
    "documents-not-apart": (
        [HUB, "architecture.model_type=prophetnet", "objective=future_ngram"],
        1,
        ["packing=best_fit", "model_type=prophetnet", "architecture.mix_documents=true"],
    ),
    "documents-apart-anyway": (
        [HUB, "architecture.model_type=llama", "architecture.mix_documents=true"],
        1,
        ["mix_documents=true", "model_type=llama can"],
    ),
    "attention-not-looked-up": (
        [HUB, "architecture.model_type=bloom", "architecture.attention=flex_attention"],
        1,
        ["attention=flex_attention", "choose one of auto, eager"],
    ),
    "tokens-not-a-multiple": (
        ["tokens_per_step=9000"],
        1,
        ["tokens_per_step=9000", "multiple of 1024", "8192 or 9216"],
    ),
    "tokens-below-one-row": (["tokens_per_step=100"], 1, ["tokens_per_step=100", "use 1024"]),
    "tokens-over-processes": (
        ["parallelism=ddp"],
        3,
        ["multiple of 3072", "sequence_length=1024 x 3 processes", "6144 or 9216"],
    ),
    "micro-batch": (
        ["trainer.micro_batch=3"],
        1,
        ["trainer.micro_batch=3", "8 rows", "1, 2, 4, 8"],
    ),
    "length-not-of-chunks": (
        ["sequence_length=1000", "tokens_per_step=8000"],
        1,
        ["sequence_length=1000", "960 or 1024"],
    ),
    "length-not-axial": (
        ["architecture.axial_pos_shape=[16,32]"],
        1,
        ["architecture.axial_pos_shape=[16, 32]", "[32, 32]", "sequence_length=512"],
    ),
    "axial-dimensions": (
        ["architecture.axial_pos_embds_dim=[10,20]"],
        1,
        ["architecture.axial_pos_embds_dim=[10, 20]", "hidden_size=256"],
    ),
    "sees-later-tokens": (
        ["architecture.local_num_chunks_after=1"],
        1,
        ["architecture.local_num_chunks_after=1", "use 0"],
    ),
    "single-of-several": (
        [],
        2,
        ["parallelism=single", "2 were started", "ddp, zero1, zero2"],
    ),
    "adafactor-zero": (
        ["optimizer=adafactor", "parallelism=zero2"],
        1,
        ["optimizer=adafactor", "parallelism=zero2", "optimizer=adamw", "parallelism=ddp"],
    ),
    "muon-offload": (["optimizer=muon", "parallelism=zero2_offload"], 2, ["optimizer=muon"]),
    "nvme-nowhere": (["parallelism=zero3_nvme"], 1, ["parallelism.offload.nvme_path=/local_nvme"]),
    "nvme-not-a-folder": (
        ["parallelism=zero3_nvme", "parallelism.offload.nvme_path=/nowhere/nvme", "precision=bf16"],
        1,
        ["parallelism.offload.nvme_path=/nowhere/nvme is not a folder"],
    ),
    "nvme-fp32-on-cpu": (
        ["parallelism=zero3_nvme", "parallelism.offload.nvme_path=/tmp", "parallelism.device=cpu"],
        1,
        ["precision=bf16", "parallelism.offload.weights=false"],
    ),
    "quantized-without-gpu": (
        ["parallelism=zero3", "parallelism.quantized_weights=true", "parallelism.device=cpu"],
        2,
        ["parallelism.quantized_weights=true needs CUDA", "use false"],
    ),
    "hpz-of-zero2": (
        ["parallelism=zero2", "parallelism.hpz_partition_size=2"],
        2,
        ["parallelism.hpz_partition_size=2", "parallelism=zero2", "use parallelism=zero3"],
    ),
    "hpz-not-dividing": (
        ["parallelism=zero3", "parallelism.hpz_partition_size=3", "tokens_per_step=4096"],
        2,
        ["parallelism.hpz_partition_size=3", "processes, 2"],
    ),
    "zero-keys-of-ddp": (
        ["parallelism=ddp", "+parallelism.zero.memory_efficient_linear=false"],
        2,
        ["parallelism.zero={'memory_efficient_linear': False}", "parallelism=ddp"],
    ),
    "muon-zero": (["optimizer=muon", "parallelism=zero1"], 2, ["optimizer=muon"]),
    "fp16-without-gpu": (
        ["precision=fp16", "parallelism.device=cpu"],
        1,
        ["precision=fp16", "bf16 or fp32"],
    ),
    "warmup-too-long": (
        ["trainer.max_steps=20"],
        1,
        ["schedule.warmup_steps=20", "trainer.max_steps=20", "use 2"],
    ),
    "decay-too-long": (
        ["schedule=warmup_stable_decay", "schedule.decay_steps=290"],
        1,
        ["schedule.decay_steps=290", "280 or less"],
    ),
    "decay-not-read": (
        ["schedule.decay_steps=5"],
        1,
        ["schedule.decay_steps=5", "schedule=warmup_stable_decay"],
    ),
}

ALLOWED = {
    "default": ([], 1),
    "ddp-alone": (["parallelism=ddp"], 1),
    "zero-alone": (["parallelism=zero3"], 1),
    "zero-of-several": (["parallelism=zero2"], 4),
    "auto-of-several": (["parallelism=auto"], 4),
    "auto-muon": (["parallelism=auto", "optimizer=muon"], 1),
    "hpz": (["parallelism=zero3", "parallelism.hpz_partition_size=2"], 4),
    "muon-ddp": (["optimizer=muon", "parallelism=ddp"], 2),
    "adafactor-single": (["optimizer=adafactor"], 1),
    "bf16-on-cpu": (["precision=bf16", "parallelism.device=cpu"], 1),
    "masked": (["objective=masked", "architecture.local_num_chunks_after=1"], 1),
    "axial-off": (["architecture.axial_pos_embds=false"], 1),
    "decay-fits": (["schedule=warmup_stable_decay", "schedule.decay_steps=280"], 1),
    "micro-batch": (["trainer.micro_batch=4"], 1),
    "other-length": (["sequence_length=4096"], 1),
}


@pytest.mark.parametrize(("words", "processes", "says"), REFUSED.values(), ids=REFUSED)
def test_refused(words, processes, says, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(UserError) as caught:
        validate(load_train_config(words))
    message = str(caught.value)
    for text in says:
        assert text in message
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize(("words", "processes"), ALLOWED.values(), ids=ALLOWED)
def test_allowed(words, processes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    config = load_train_config(words)
    before = dataclasses.asdict(config)
    validate(config)
    assert dataclasses.asdict(config) == before  # checking changes nothing


@pytest.mark.parametrize("has_gpu", [True, False], ids=["gpu", "no-gpu"])
@pytest.mark.parametrize("words", [["precision=fp16"], ["parallelism.device=cuda"]], ids=str)
def test_what_needs_a_gpu(words, has_gpu, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    config = load_train_config(words)
    if has_gpu:
        validate(config)
    else:
        with pytest.raises(UserError, match=words[0]):
            validate(config)


@pytest.fixture
def limited(monkeypatch):
    """The Reformer as if it could do less."""

    def limit(**changes):
        row = dataclasses.replace(registry.ARCHITECTURES["reformer"], **changes)
        monkeypatch.setitem(registry.ARCHITECTURES, "reformer", row)

    return limit


def test_objective_that_the_architecture_cannot_do(limited):
    limited(objectives=lambda _: ("causal",))
    with pytest.raises(UserError, match=r"objective=masked.*choose one of causal"):
        validate_data(load_train_config(["objective=masked"]))


@pytest.mark.parametrize("packing", ["best_fit", "concatenate", "one_per_row"])
def test_packing_that_the_architecture_cannot_keep_apart(packing, limited):
    limited(segments=lambda _: False)
    config = load_train_config([f"packing={packing}"])
    if packing == "one_per_row":
        validate_data(config)
    else:
        with pytest.raises(UserError, match=f"packing={packing}.*packing=one_per_row"):
            validate_data(config)


def test_documents_mix_where_that_is_asked_for():
    words = [HUB, "architecture.model_type=prophetnet", "objective=future_ngram"]
    validate_data(load_train_config([*words, "architecture.mix_documents=true"]))


@pytest.mark.parametrize("packing", ["best_fit", "concatenate", "one_per_row"])
def test_a_memory_needs_a_running_text(packing, limited):
    limited(remembers=True)
    for order in ("auto", "contiguous"):
        config = load_train_config([f"packing={packing}", f"trainer.order={order}"])
        if packing == "concatenate":
            validate_data(config)
        else:
            with pytest.raises(UserError, match=f"packing={packing} takes apart.*concatenate"):
                validate_data(config)
    validate_data(load_train_config([f"packing={packing}", "trainer.order=shuffled"]))


def test_order_without_a_memory():
    with pytest.raises(UserError, match=r"trainer\.order=contiguous.*architecture=reformer does"):
        validate_data(load_train_config(["trainer.order=contiguous", "packing=concatenate"]))
    with pytest.raises(UserError, match=r"trainer\.order=shufled.*shuffled"):
        load_train_config(["trainer.order=shufled"])


def test_preparing_needs_neither_the_gpu_nor_the_processes_of_the_run():
    validate_data(load_train_config(["precision=fp16", "tokens_per_step=1"]))


def test_names_of_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is none beside it"):
        require_run("checkpoints/x")
    (tmp_path / "checkpoints" / "x").mkdir(parents=True)
    (tmp_path / "checkpoints" / "x" / "config.yaml").write_text("")
    require_run("checkpoints/x")
    with pytest.raises(UserError, match="checkpoints/x"):
        require_run("y")


def test_names_of_architectures():
    assert ImportConfig(source="x").architecture is None
    with pytest.raises(UserError, match="did you mean 'reformer'"):
        ImportConfig(source="x", architecture="reformr")
