"""The names of the objectives, and what each means for a model.

What they compute is in `lsp/data/objectives/`, a file for each.
"""

from __future__ import annotations

NEXT_TOKEN = ("causal", "fill_in_the_middle")
"""Position t predicts the token at t + 1: a model must not see what comes later."""

PAIRS = ("next_sentence", "sentence_order")
"""Masked tokens, and which of two texts follows the other."""

MASKED = ("masked", *PAIRS, "replaced_token")
"""Some tokens are hidden, and predicted at their own position from both sides."""

DECODER = ("span_corruption", "denoising", "gap_sentences", "future_ngram", "translation")
"""An encoder reads one text and a decoder predicts another."""

POSITION_WISE = (*NEXT_TOKEN, "masked")
"""Batch and loss have one value for each position, so rows can be shared by position."""

OBJECTIVES = (*NEXT_TOKEN, *MASKED, *DECODER, "permutation", "recurring_span")
