"""Tunables: each file puts hyperparameters phi (M, P) into the process, by a link u -> phi (`protocols.Tunable`)."""
