"""A world that is only imagined: virtual time and runners that do what they are told."""
