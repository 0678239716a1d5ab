"""`deploy.py compare`: every precision of a model built, measured side by side and judged."""
