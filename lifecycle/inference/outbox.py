"""Events held back until the devices have work, so that readers run while they compute."""

import threading

from lifecycle.inference.generation import EngineError, Event, Generation


class Outbox:
    """The events of a turn, in their order; from any thread."""

    def __init__(self) -> None:
        self._held: list[tuple[Generation, Event | EngineError]] = []
        self._sending = threading.Lock()

    def put(self, generation: Generation, event: Event | EngineError) -> None:
        """Holds an event for `send`."""
        with self._sending:
            self._held.append((generation, event))

    def send(self) -> None:
        """Tells all that is held."""
        with self._sending:
            held, self._held = self._held, []
            for generation, event in held:
                generation.put(event)
