"""Training code of the bundled models; none of it is in the wheel."""
