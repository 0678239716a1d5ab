"""Networks that other libraries compute, read from their folders: one module a family; `registry` lists them."""
