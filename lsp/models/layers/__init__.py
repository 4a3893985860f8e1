"""What layers are made of: attention, positions, the reversible stack, tiling, losses."""
