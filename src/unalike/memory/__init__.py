"""Training memory as a figure: predicted without allocating, counted, measured, and a model cut to fit it.

`work` says what is asked for, `predict` gives its peak in bytes, `measure` what it takes in truth, `partition` the cuts
of a chain whose largest step is the smallest.
"""
