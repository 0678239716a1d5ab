"""An image seen at other sizes, and mirrored: which views there are, their logits, and what they agree on."""
