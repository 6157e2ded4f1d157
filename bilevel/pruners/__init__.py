"""Pruners: ways to spend few samples on candidates that are clearly not the best.

Each file holds one pruner, a frozen dataclass whose fields are its options. A candidate is measured on a growing number
of samples, its rungs, and each rung adds samples to those before:

    rungs   the numbers of samples at which it is looked at
    open    what decides at a rung whether the candidate under way goes on

A pruner sees `bilevel/trials.py`, where its protocol stands, and no other room.
"""
