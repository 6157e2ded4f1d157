"""A small world to tune in: a text-to-image diffusion model of emoji and a CLIP that judges it."""
