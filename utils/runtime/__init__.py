"""What the program runs on: devices, memory, and the processes that share the work."""
