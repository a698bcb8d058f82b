"""`verify`: a log checked while it is folded, in one process or two, at once or in the background."""
