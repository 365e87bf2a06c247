"""What a process runs on: devices, other processes, signals, progress."""
