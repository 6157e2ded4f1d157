"""How good an image is: a file a reward, whose dataclass holds the options and opens the reward itself."""


class Refused(ValueError):
    """Weights, a model or a tuned folder cannot be used; the message says which, why, and what to do."""
