"""Searches: a file each. What they promise stands in `bilevel/trials.py`."""
