"""The engine at work: the loop between the log and the world, and its services."""
