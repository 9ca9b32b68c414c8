"""What executes a model: one file per runtime, found by its name."""
