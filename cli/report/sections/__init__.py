"""Sections of `report.html`: a Python file and a template each, found by their name."""
