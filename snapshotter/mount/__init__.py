"""One file system, served to the kernel by two engines."""
