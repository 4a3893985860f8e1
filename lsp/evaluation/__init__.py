"""Measurements of a trained model: where it predicts well, and what it makes of long context."""
