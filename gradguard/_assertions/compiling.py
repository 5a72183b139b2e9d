"""What the assertions do inside a function that `torch.compile` compiles."""

UNCOMPILED = (
    "gradguard's assertions on tensors, parameters and gradients run uncompiled: with "
    "fullgraph=True, call them outside the compiled function"
)
"""They break the graph there: a check that is left out would pass by doing nothing."""
