"""Image and prompt in, captions out: sources, runs, records, and the Python face."""
