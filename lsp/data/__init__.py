"""Packed shards -> batches: order, cursor, objectives."""
