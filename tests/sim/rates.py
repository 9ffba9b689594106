"""How many messages may come or go in a time, counted by itself beside what the broker counts."""


class Bucket:
    """So many a second, of which a tenth of a second's may come at once, or one."""

    def __init__(self, rate: int, now_us: int) -> None:
        """Begin full."""
        self.rate, self.at_us = rate, now_us
        self.level = self.most

    @property
    def most(self) -> float:
        """What may come at once."""
        return max(1.0, self.rate / 10)

    def fill(self, rate: int, now_us: int) -> None:
        """Time has passed, and this is the rate now."""
        self.rate = rate
        self.level = min(self.most, self.level + (now_us - self.at_us) * rate / 1_000_000)
        self.at_us = now_us
