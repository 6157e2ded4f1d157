"""Lower solvers: each file finds what is generated at the hyperparameters (`protocols.LowerSolver`)."""
