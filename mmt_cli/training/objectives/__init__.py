"""What is learned: each objective turns a batch into losses."""
