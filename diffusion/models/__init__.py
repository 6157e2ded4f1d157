"""Models that a job can sample from: a file each, found by its name."""
