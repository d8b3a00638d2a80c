"""The models: plain modules from token ids (B, T) to next-token logits (B, T, V)."""
