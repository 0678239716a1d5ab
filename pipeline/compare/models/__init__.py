"""Several models in one comparison: each is compared by itself first, then all of them with one another."""
