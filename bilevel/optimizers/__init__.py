"""Optimizers: each file moves u (P,) uphill along a gradient, one step a call (`protocols.Optimizer`)."""
