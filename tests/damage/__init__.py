"""What befalls a log: disks, locks, clocks, crowds. Each for real, by the command that a user would type."""
