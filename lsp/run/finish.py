"""What a person gets when a run ends: a picture, a sample, what to type next."""

from __future__ import annotations

from data_pipelines.prepare import PreparedData
from lsp.core.errors import UserError
from lsp.run.config import RunConfig
from lsp.run.load import load_run
from lsp.tracking.tracker import read_rows
from lsp.training.plot import plot_losses


def finish(config: RunConfig, prepared: PreparedData, *, done: bool) -> None:
    """Draws the curve; at the end of the run also samples, and says what comes next.

    Args:
        config: The completed configuration.
        prepared: The run's data.
        done: Whether it has reached its last step.
    """
    rows = read_rows(config.run_dir / "metrics.jsonl")
    entropy = prepared.manifest["splits"]["validation"]["order0_bits_per_byte"]
    plot_losses(rows, config.run_dir / "loss.png", entropy)
    if not done:
        return
    last = next((r for r in reversed(rows) if r.get("validation_loss") is not None), None)
    if last is not None and last.get("validation_bits_per_byte") is not None and entropy:
        print(
            f"\nvalidation: {last['validation_bits_per_byte']:.4f} bits per byte after "
            f"{last['step']:,} steps (the corpus's order-0 entropy: {entropy:.4f})"
        )
    if config.objective.name == "causal" and config.trainer.sample_tokens:
        print(f"\nsample:\n{_sampled(config)}")
    print(_what_next(config))


def sample(config: RunConfig) -> str:
    """A continuation by the newest checkpoint, which shows that it can be read."""
    from transformers import AutoTokenizer

    from lsp.models.sampling import generate_ids

    loaded = load_run(config.run_dir)
    tokenizer = AutoTokenizer.from_pretrained(loaded.tokenizer_path)
    prompt_ids = tokenizer(_prompt(config), add_special_tokens=False)["input_ids"]
    room = loaded.config.sequence_length - len(prompt_ids)
    ids = list(
        generate_ids(
            loaded.model,
            prompt_ids,
            max_new_tokens=min(config.trainer.sample_tokens, room),
            temperature=0.8,
            seed=config.seed,
            eos_id=tokenizer.eos_token_id,
        )
    )
    text: str = tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=True)
    return text


def _sampled(config: RunConfig) -> str:
    try:
        text = sample(config)
    except UserError as error:  # a sample is an extra: without one the run is still done
        text = f"none: {error}"
    return "\n".join(f"    {line}" for line in text.splitlines())


def _prompt(config: RunConfig) -> str:
    return "def " if config.data.source == "python_library" else "The "


def _what_next(config: RunConfig) -> str:
    run = config.run_dir.as_posix()
    lines = [
        f"\nloss curve: {run}/loss.png   metrics: {run}/metrics.jsonl",
        "next:",
        f"  lsp evaluate run={run}",
        f"  lsp export   run={run} out=exported/{config.run_name}",
    ]
    if config.objective.name == "causal":
        lines.insert(2, f'  lsp generate run={run} prompt="{_prompt(config)}"')
    return "\n".join(lines)
