"""Decoding: from a model's logits to token ids, by greedy search, sampling or beam search."""
