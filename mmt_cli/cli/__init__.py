"""The commands of `mmt`: each parses, calls what is below, and prints."""
