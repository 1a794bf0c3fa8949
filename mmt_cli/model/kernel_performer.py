"""Attention through positive random features: time and memory linear in the length, with or without causal reading.

B batch, H heads, G heads of keys and values, R = H/G query heads that share one, Q queries, K keys, C a chunk of
tokens, E head width, F features.
"""

import math

import torch
from torch import Tensor

from mmt_cli.model.cache import LayerCache, PrefixSums
from mmt_cli.model.kernel_full import Kernel
from mmt_cli.model.mask import Visibility

_CHUNK = 256  # tokens at once: their features fit a processor's cache
_LARGEST_EXPONENT = 64.0  # of a key's feature: e^64 times thousands of keys and features is a float32 still
_TINY = 1e-30  # beside sums that vanish: zero, not NaN


class Performer(Kernel):
    """Softmax attention estimated by FAVOR+ (Choromanski et al. 2021).

    exp(q·k) is the mean over random w of exp(w·q - |q|²/2) exp(w·k - |k|²/2); so one sum over the keys serves all
    queries. Computed in float32 whatever the model computes in. The error falls with 1/√F and grows steeply with the
    norm of queries and keys.

    Supports causal reading and padding; of masks, those that `visibility.segments` describe, hence no rows that differ
    otherwise and no key bias. The cache keeps the sums over the tokens before the new ones: cached is as uncached, up
    to the order of summation. There are no attention weights to drop: dropout is ignored.
    """

    projection: Tensor  # w_FE

    def __init__(self, *, head_width: int, features: int, seed: int = 0) -> None:
        super().__init__()
        self.factor = 1 / math.sqrt(math.sqrt(head_width))
        # A buffer that is saved: with other features the same weights are another model.
        self.register_buffer("projection", torch.empty(features, head_width))
        if not self.projection.is_meta:
            self.projection.copy_(_orthogonal_features(features, head_width, seed))

    def forward(
        self,
        q_BHQE: Tensor,
        k_BGKE: Tensor,
        v_BGKE: Tensor,
        visibility: Visibility,
        dropout: float,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Return the attended values, BHQE."""
        assert visibility.segments, "performer sums in one order for all rows"
        assert visibility.key_bias_BK is None, "performer has no key bias"
        with torch.autocast(q_BHQE.device.type, enabled=False):
            return self._attend(q_BHQE, k_BGKE, v_BGKE, visibility, cache).to(q_BHQE.dtype)

    def _attend(
        self, q_BHQE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, visibility: Visibility, cache: LayerCache | None
    ) -> Tensor:
        start, valid_BK = visibility.start, visibility.keys.valid_BL
        assert isinstance(start, int), "performer knows how many keys there are"
        batch, heads, queries, width = q_BHQE.shape
        shared = k_BGKE.shape[1]
        q_BGRQE = q_BHQE.reshape(batch, shared, heads // shared, queries, width)
        sums = self._sums_before(start, k_BGKE, v_BGKE, valid_BK, cache)
        read: dict[int, Tensor] = {}  # by the first query of a chunk
        for segment in visibility.segments:
            chunks = _chunks(segment.start, segment.end)
            keys = (self._key_features(k_BGKE, v_BGKE, valid_BK, start + a, start + b) for a, b in chunks)
            if not segment.causal:
                for features_BGCF, v_BGCE in keys:
                    sums = _added(sums, features_BGCF, v_BGCE)
                read |= {a: _read(self._query_features(q_BGRQE[:, :, :, a:b]), sums) for a, b in chunks}
                continue
            for (a, b), (features_BGCF, v_BGCE) in zip(chunks, keys, strict=True):
                query_BGRCF = self._query_features(q_BGRQE[:, :, :, a:b])
                read[a] = _read(query_BGRCF, sums, features_BGCF, v_BGCE)
                sums = _added(sums, features_BGCF, v_BGCE)
        return torch.cat([read[a] for a in sorted(read)], dim=3).flatten(1, 2)

    def _sums_before(
        self, start: int, k_BGKE: Tensor, v_BGKE: Tensor, valid_BK: Tensor | None, cache: LayerCache | None
    ) -> PrefixSums:
        """Return the sums over the keys before `start`, from the cache's where those have not gone past it."""
        sums = None if cache is None else cache.sums
        if sums is None or sums.count > start:  # the cache has been trimmed, and its slots may hold other tokens
            batch, heads, _, width = k_BGKE.shape
            shape = (batch, heads, len(self.projection), width)
            zeros_BGFE = k_BGKE.new_zeros(shape, dtype=torch.float32)
            sums = PrefixSums(count=0, values_BHFE=zeros_BGFE, features_BHF=zeros_BGFE[..., 0])
        for a, b in _chunks(sums.count, start):
            sums = _added(sums, *self._key_features(k_BGKE, v_BGKE, valid_BK, a, b))
        if cache is not None:
            cache.sums = sums
        return sums

    def _key_features(
        self, k_BGKE: Tensor, v_BGKE: Tensor, valid_BK: Tensor | None, a: int, b: int
    ) -> tuple[Tensor, Tensor]:
        """Return features_BGCF, zero at padding, and values_BGCE of the keys from a to b."""
        k_BGCE = self._scaled(k_BGKE[:, :, a:b])
        projection_FE = self.projection.float()
        # w·k - |k|²/2 is at most |w|²/2. What is taken off to keep float32 must not look at the keys: those to come
        # would change it.
        largest = projection_FE.square().sum(dim=-1).amax() / 2
        off_BGC1 = k_BGCE.square().sum(dim=-1, keepdim=True) / 2 + (largest - _LARGEST_EXPONENT).clamp_min(0)
        features_BGCF = (k_BGCE @ projection_FE.T - off_BGC1).exp()
        if valid_BK is not None:
            features_BGCF = features_BGCF * valid_BK[:, None, a:b, None]
        return features_BGCF, v_BGKE[:, :, a:b].float()

    def _query_features(self, q_BGRCE: Tensor) -> Tensor:
        """Return features_BGRCF, each query's up to a factor of its own, which its sum of weights cancels."""
        exponent_BGRCF = self._scaled(q_BGRCE) @ self.projection.float().T
        return (exponent_BGRCF - exponent_BGRCF.detach().amax(dim=-1, keepdim=True)).exp()

    def _scaled(self, x: Tensor) -> Tensor:
        """Let q·k be the score: the factor 1/√E is shared between both."""
        return x.float() * self.factor


def _orthogonal_features(features: int, width: int, seed: int) -> Tensor:
    """Return w_FE: normal vectors, those of a block of E at right angles, which lowers the estimate's variance."""
    generator = torch.Generator().manual_seed(seed)
    blocks: list[Tensor] = []
    for _ in range(math.ceil(features / width)):
        normal_EE = torch.randn(width, width, generator=generator, device="cpu", dtype=torch.float32)
        q_EE, r_EE = torch.linalg.qr(normal_EE)
        blocks.append(q_EE * r_EE.diagonal().sign())  # without the signs not every direction is equally likely
    normal_FE = torch.randn(features, width, generator=generator, device="cpu", dtype=torch.float32)
    length_F1: Tensor = torch.linalg.vector_norm(normal_FE, dim=1, keepdim=True)
    return torch.cat(blocks)[:features] * length_F1


def _chunks(start: int, end: int) -> list[tuple[int, int]]:
    return [(a, min(a + _CHUNK, end)) for a in range(start, end, _CHUNK)]


def _added(sums: PrefixSums, features_BGCF: Tensor, v_BGCE: Tensor) -> PrefixSums:
    """Return the sums with these keys among them."""
    return PrefixSums(
        count=sums.count + v_BGCE.shape[2],
        values_BHFE=sums.values_BHFE + features_BGCF.mT @ v_BGCE,
        features_BHF=sums.features_BHF + features_BGCF.sum(dim=2),
    )


def _read(
    query_BGRCF: Tensor, sums: PrefixSums, features_BGCF: Tensor | None = None, v_BGCE: Tensor | None = None
) -> Tensor:
    """Return attended_BGRCE: over the sums, and over the queries' own chunk causally where that is given."""
    attended_BGRCE = query_BGRCF @ sums.values_BHFE[:, :, None]
    weight_BGRC1 = query_BGRCF @ sums.features_BHF[:, :, None, :, None]
    if features_BGCF is not None and v_BGCE is not None:
        weights_BGRCC = (query_BGRCF @ features_BGCF[:, :, None].mT).tril()
        attended_BGRCE = attended_BGRCE + weights_BGRCC @ v_BGCE[:, :, None]
        weight_BGRC1 = weight_BGRC1 + weights_BGRCC.sum(dim=-1, keepdim=True)
    return attended_BGRCE / (weight_BGRC1 + _TINY)
