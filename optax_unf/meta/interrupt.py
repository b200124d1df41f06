"""Signals to stop, obeyed where a run can be stopped."""

import signal
import threading
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Inside the `with` block, SIGTERM and SIGINT (Ctrl-C) only set `received`; the block stops where it sees fit.

    A second Ctrl-C stops at once. Outside of the main thread, where Python has no signal handlers, and where it is not
    wanted, signals do what they did.

    Attributes:
      received: the first signal that came, or `None`.

    Example:
      >>> with Interruption() as interruption:
      ...     interruption.received is None
      True
    """

    def __init__(self, wanted: bool = True) -> None:
        self.received: signal.Signals | None = None
        self._wanted = wanted and threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        if self._wanted:
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not installed from Python: it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if kind is None and self.received:
            self.stop()

    def stop(self) -> NoReturn:
        """Ends the process as the signal would have, but by an exception.

        Raises:
          KeyboardInterrupt: SIGINT came.
          SystemExit: SIGTERM came; the code is 143, as of a process that it killed.
        """
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.received is signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
