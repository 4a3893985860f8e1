"""What a checkpoint holds, and how it is written so that it is whole or absent."""
