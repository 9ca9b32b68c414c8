"""What a recipe can do to a model: one step per file, found by the file's name."""
