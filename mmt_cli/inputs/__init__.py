"""What goes into the model: images as pixels, text as token ids."""
