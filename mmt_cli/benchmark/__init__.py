"""How long each part of the model takes."""
