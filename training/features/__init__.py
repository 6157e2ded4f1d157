"""Small classifiers of small images, whose features the distances between sets of images are measured in."""
