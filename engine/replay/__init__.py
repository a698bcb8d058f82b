"""Many events folded at once: by columns, by situation, with writes deferred."""
