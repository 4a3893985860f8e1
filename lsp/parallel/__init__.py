"""Processes, sharding and arithmetic: the only place beside checkpointing that knows DeepSpeed."""
