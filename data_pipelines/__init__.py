"""Documents in, packed shards out. Knows no torch; importing it costs next to nothing."""
