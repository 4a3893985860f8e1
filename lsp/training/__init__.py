"""The loop, the optimizer, the schedule, evaluation."""
