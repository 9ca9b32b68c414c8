"""Where runs are remembered: `local` (the run folder, always) and `mlflow`."""
