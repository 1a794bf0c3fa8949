"""From images with captions to a checkpoint."""
