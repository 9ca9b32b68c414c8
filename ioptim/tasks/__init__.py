"""What models are for: one file per task, found by its name. A file that starts with `_` holds what several tasks share."""
