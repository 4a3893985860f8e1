"""Every architecture that `transformers` has, as ours: the adapter and its table."""
