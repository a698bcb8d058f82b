"""What all kinds of execution share: process tasks, targets, polling, templates, endings, back pressure."""
