"""What the exit status of `lsp` means; launchers decide by it."""

DONE = 0
BUG = 1
USER_ERROR = 2
DIVERGED = 3
"""Too many non-finite steps in a row: restarting would only repeat it."""
LEAK = 4
"""Tokens reach where they must not: documents of a row, or the past. It would only be repeated."""
INTERRUPTED = 75
"""A signal arrived, and the last finished step is saved. Requeue; the same command goes on."""
STALLED = 76
"""A process hung or was lost, and this one could not go on without it. Run the same command again:
it resumes from the last complete checkpoint, which may be older than the last step."""
