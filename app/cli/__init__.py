"""The command line: one file a command group, registered in `main`."""
