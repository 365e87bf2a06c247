"""Settings: experiment files, and options that files, the command line and Python share."""
