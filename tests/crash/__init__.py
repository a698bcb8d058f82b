"""Real engines that are killed: what is left is what an undisturbed engine leaves."""
