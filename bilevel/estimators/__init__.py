"""Estimators: each file turns samples, a law or a network in training into a gradient (`protocols.Estimator`)."""
