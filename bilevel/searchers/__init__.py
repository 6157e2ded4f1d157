"""Searchers: ways to find good hyperparameters from values of the objective alone, without its gradient.

The room is empty yet. Each file will hold one searcher, a frozen dataclass whose fields are its options:

    ask    the hyperparameters phi to try next, given what has been seen
    tell   the value of the objective there, with its standard error

A searcher is for objectives that have no usable gradient, and for a fair comparison with those that have one. It sees
`bilevel.problem.Problem` and `bilevel.protocols`, and no other room.
"""
