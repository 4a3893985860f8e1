"""Distributed long-sequence pretraining: sequences that fit, and runs that can be trusted."""

__version__ = "0.1.0"
