"""Searchers: ways to find good hyperparameters from values of the objective alone, without its gradient.

Each file holds one searcher, a frozen dataclass whose fields are its options. `open` gives a search:

    ask    the candidate to try next, given what the search was told so far
    tell   the value of the objective there; it may be noisy

A searcher is for objectives that have no usable gradient, and for a fair comparison with those that have one. It sees
`bilevel/trials.py`, where its protocol stands, and no other room.
"""
