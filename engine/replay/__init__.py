"""Many events folded at once: by columns, by job state, with writes deferred."""
