"""The commands of `ioptim`, one file each: `main(args) -> ExitCode`."""
