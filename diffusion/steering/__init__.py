"""Steering rules: a file each, found by its name."""
