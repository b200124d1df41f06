"""Signals to stop, obeyed where a run can be stopped."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Inside the `with` block, SIGTERM and SIGINT (Ctrl-C) only set `received`; the block stops where it sees fit.

    The first one is answered on stderr, and a second Ctrl-C stops at once. Outside of the main thread, where Python has
    no signal handlers, and where it is not wanted, signals do what they did.

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

    @contextlib.contextmanager
    def nothing_to_save(self) -> Iterator[None]:
        """Inside of this block SIGTERM ends the process at once, as it does where nobody asked for it.

        Python handles signals between its own instructions only, and a compilation, of a minute at times, is one.
        """
        if not self._wanted:
            yield
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, self._receive)

    def stop(self, message: str = "") -> NoReturn:
        """Ends the process as the signal would have, but by an exception.

        Args:
          message: what to say on stderr before.

        Raises:
          KeyboardInterrupt: SIGINT came.
          SystemExit: SIGTERM came; the code is 143, as of a process that it killed.
        """
        if message:
            print(f"\n{message}", file=sys.stderr, flush=True)
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            print("\nStopping after this outer step. Ctrl-C again stops at once.", file=sys.stderr, flush=True)
        self.received = self.received or signal.Signals(number)
