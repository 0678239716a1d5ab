"""What became of the inputs of `run`: one by one as it happens, and of all together."""
