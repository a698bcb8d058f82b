"""The past of a log, for whoever asks: states at any point, explanations, paths of jobs, waiting times, lineage.

In: a log that is only read, and nothing of the program that wrote it. Out: values, the same ones that the command
line prints as JSON. `history.History` is the door; the modules beside it each answer one kind of question, from a
reader and a folded state.
"""
