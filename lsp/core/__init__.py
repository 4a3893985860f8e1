"""What everything else stands on: batch, errors, seeding, ranks."""
