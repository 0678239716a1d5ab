"""What this machine is: its GPU, board, clocks and memory, and what is missing on it."""
