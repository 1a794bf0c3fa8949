"""Images read ahead of the model in threads, and handed over in order. Knows no model.

One thread lists, so that a slow list does not hold up what it has named already; several decode, which Pillow does
without Python's lock; the caller takes from the front.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from mmt_cli.captioning.sources import Item

T = TypeVar("T")

_END = None  # of the list


class ReadAhead(Generic[T]):
    """Calls `read` for each item in threads, as far ahead of the caller as allowed.

    Attributes:
        waited: seconds that the caller stood still for want of an image.
    """

    def __init__(self, items: Iterable[Item], read: Callable[[Item], T], *, workers: int, ahead: int) -> None:
        """Start reading.

        Args:
            items: what to read; listed in a thread of its own.
            read: returns what an item holds; what it raises ends the run.
            workers: threads that read.
            ahead: items that are read or being read at most, and not yet taken.
        """
        self.waited = 0.0
        self._items = iter(items)
        self._read = read
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="mmt-read")
        self._room = threading.Semaphore(ahead)
        self._listed: queue.SimpleQueue[tuple[Item, Future[T]] | BaseException | None] = queue.SimpleQueue()
        self._closed = False
        # A daemon: a list that comes through a pipe may never end, and must not keep the process alive.
        threading.Thread(target=self._list, name="mmt-list", daemon=True).start()

    def take(self, timeout: float | None = None) -> tuple[Item, T] | None:
        """Return the next item and what was read; None at the end of the list.

        Args:
            timeout: seconds to wait for the list to name an item; None waits as long as it takes. An item that is
                named already is waited for.

        Raises:
            TimeoutError: the list has named nothing so far.
        """
        start = time.perf_counter()
        try:
            found = self._listed.get(timeout=timeout)
            if isinstance(found, BaseException):
                raise found
            if found is _END:
                self._listed.put(_END)  # for whoever asks again
                return None
            item, future = found
            self._room.release()
            return item, future.result()
        except queue.Empty:
            raise TimeoutError from None
        finally:
            self.waited += time.perf_counter() - start

    def close(self) -> None:
        """Begin nothing more; what is being read in threads ends by itself."""
        self._closed = True
        self._room.release()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _list(self) -> None:
        try:
            for item in self._items:
                self._room.acquire()
                if self._closed:
                    return
                self._listed.put((item, self._pool.submit(self._read, item)))
        except BaseException as error:  # whatever it is, it belongs to the caller
            self._listed.put(error)
        else:
            self._listed.put(_END)
