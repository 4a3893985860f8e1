"""Where metrics go: JSONL always, wandb or TensorBoard when asked."""
