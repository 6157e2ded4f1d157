"""The one error that this room raises about a user's model."""


class Refused(ValueError):
    """A model, its weights or a tuned folder cannot be used; the message says which, why, and what to do."""
