"""The shared core: configuration, vision tower, fusion, blocks, cache. It ends at logits."""
