"""What a reward raises when its score, or what it was to score, is not a number to learn from."""


class NotFinite(ValueError):
    """A log-prob or a part of a reward is NaN or infinite."""
