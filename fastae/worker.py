"""The thread that runs compiled code, while the one that asked stays in Python and so receives Ctrl-C."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["Job", "Worker"]


class Job:
    """A call made on the worker thread."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call
        self.error: BaseException | None = None
        self.over = False
        self._done = threading.Lock()  # held until the call is over
        self._done.acquire()

    def run(self) -> None:
        """Make the call."""
        assert self.call is not None
        try:
            self.call()
        except BaseException as error:  # raised again on the thread that waits
            self.error = error
        finally:
            self.call = None
            self.over = True
            self._done.release()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, so long at most; whether it is there.

        The lock only wakes: an interrupt may come just when it was taken, and then `over` still says so.
        """
        if not self.over:
            self._done.acquire(timeout=seconds)
        return self.over


def _serve(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # it refers to the trainer, which must be free to go while this waits


class Worker:
    """A thread that waits for jobs until its owner is no more.

    It is kept because starting a thread costs a tenth of an epoch of 50 small updates, handing over a job
    a fiftieth.
    """

    def __init__(self, owner: object) -> None:
        self.process = os.getpid()  # a forked child has no such thread
        jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.put = jobs.put
        threading.Thread(target=_serve, args=(jobs,), name="fastae", daemon=True).start()
        weakref.finalize(owner, jobs.put, None)
