"""One log under two definitions."""
