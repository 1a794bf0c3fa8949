"""Steps that a GPU is given as a whole: recorded once as a CUDA graph, and replayed for every token of every batch.

A step is some hundred small kernels, which a GPU does faster than Python can ask for them. A recording is good for
tensors that lie where they lay and have the shape they had, so it has a cache of its own, into which that of a batch is
copied. Rows that finish keep their place, unread.

R rows, V vocabulary.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmt_cli.errors import is_out_of_memory
from mmt_cli.model.cache import KVCache
from mmt_cli.model.fixed_cache import FixedCache, can_be_fixed, shape_of
from mmt_cli.model.transformer import MultimodalTransformer

STEPS_BEFORE = 8  # in a shape met for the first time: recording costs as much as some steps
_KEPT = 2  # recordings of a model, each with a cache of its own
Step = Callable[[], Tensor]


def can_replay(model: MultimodalTransformer, device: torch.device) -> bool:
    """Say whether steps can be recorded: on a GPU, and with nobody watching the modules, who would see no replay."""
    return device.type == "cuda" and can_be_fixed(model.config) and not _is_watched(model)


def record(step: Step, undo: Callable[[], None], device: torch.device) -> Step:
    """Return what does a step again, on the same tensors; the recording itself changes nothing.

    Args:
        step: gives the same tensor each time.
        undo: takes one step back.
        device: the GPU.

    Raises:
        RuntimeError: the driver, or a library, cannot record it.
    """
    with torch.cuda.device(device):
        before = torch.cuda.current_stream()
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(before)
        with torch.cuda.stream(beside):  # libraries choose kernels and take memory the first time
            step()
            undo()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
                logits_RV = step()
        finally:  # a capture that fails leaves its stream the current one
            torch.cuda.set_stream(before)
        before.wait_stream(beside)

    def replay() -> Tensor:
        graph.replay()
        return logits_RV

    return replay


class Recording:
    """A model's step behind a cache of one shape."""

    def __init__(self, model: MultimodalTransformer, cache: KVCache) -> None:
        device = cache.position_B.device
        self.cache = FixedCache(cache, model.config.text.max_length - 1)
        self.token_ids_R1 = torch.zeros(len(cache.position_B), 1, dtype=torch.long, device=device)
        self.replay = record(lambda: self._step(model), lambda: self.cache.go_back(cache), device)
        self.user: weakref.ref[object] | None = None

    def _step(self, model: MultimodalTransformer) -> Tensor:
        logits_RV = model.step(self.token_ids_R1, self.cache)
        self.cache.advance(1)
        return logits_RV

    @property
    def free(self) -> bool:
        """Whether nobody is writing with it."""
        return self.user is None or self.user() is None


class Recordings:
    """The last recordings of a model, by the shape of the cache and by where the weights lie."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Recording] = OrderedDict()
        self._begun: Hashable = None
        self._refused = False

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return bool(self._kept)

    def find(self, model: MultimodalTransformer, cache: KVCache, user: object, *, first: bool) -> Recording | None:
        """Return a recording that holds what a cache holds; None where it is not worth one, or somebody writes with it.

        One is made of a shape that the batch before began with, or this one began with and still has.

        Args:
            model: whose steps.
            cache: of no use by itself once there is a recording.
            user: who writes with it, as long as this lives.
            first: whether no step has been made yet.
        """
        with self._lock:
            found = None if self._refused else self._found(model, cache, first=first)
            if found is not None:
                found.user = weakref.ref(user)
        return found

    def _found(self, model: MultimodalTransformer, cache: KVCache, *, first: bool) -> Recording | None:
        key = shape_of(cache), tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))
        again = key == self._begun
        if first:
            self._begun = key
        found = self._kept.get(key)
        if found is None and again:
            found = self._recorded(model, cache)
            if found is not None:
                self._kept[key] = found
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return found
        if found is None or not found.free:
            return None
        found.cache.load(cache)
        self._kept.move_to_end(key)
        return found

    def _recorded(self, model: MultimodalTransformer, cache: KVCache) -> Recording | None:
        """Return a new recording; None where it has no room or is refused: the cache is as good as before."""
        try:
            return Recording(model, cache)
        except RuntimeError as error:
            if is_out_of_memory(error):
                self._kept.clear()
            else:
                self._refused = True
            return None


_recordings: weakref.WeakKeyDictionary[MultimodalTransformer, Recordings] = weakref.WeakKeyDictionary()


def recordings_of(model: MultimodalTransformer) -> Recordings:
    """Return those of a model, which go with it."""
    return _recordings.setdefault(model, Recordings())


def is_recorded(model: MultimodalTransformer) -> bool:
    """Say whether steps of a model are replayed by now."""
    return model in _recordings and _recordings[model].any


def forget_recordings(model: MultimodalTransformer) -> None:
    """Give the memory of a model's recordings back."""
    _recordings.pop(model, None)


@contextmanager
def memory_given_back(model: MultimodalTransformer) -> Iterator[None]:
    """Drop a model's recordings where memory runs out: it will be tried again with less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            forget_recordings(model)
        raise


def _is_watched(model: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
