# The example's own broken file: the pipeline must survive it and be able to explain it.
def half(:
