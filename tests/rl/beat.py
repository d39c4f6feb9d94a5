"""An environment as a user writes one: it says digits, and wants to hear a higher one each time."""

import random

from lifecycle.rl.environment import Environment, Step


class Beat(Environment):
    """Three digits are to be beaten, the first by the row."""

    def reset(self, row):
        """The row's digit."""
        self.draw, self.left, self.said = random.Random(self.seed), 3, int(row["prompt"])
        return [{"role": "user", "content": str(self.said)}]

    def step(self, answer):
        """A point for a higher digit; then another digit."""
        heard = answer["content"].strip()
        reward = float(heard.isdecimal() and len(heard) == 1 and int(heard) > self.said)
        self.left, self.said = self.left - 1, self.draw.randrange(9)
        return Step([{"role": "user", "content": str(self.said)}], reward, done=self.left == 0)
