"""Key-value cache: attention inputs of the columns that later forward passes do not recompute.

Shapes: B rows, T tokens computed now, C columns of the rows, K key-value heads, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of every layer and column, as last computed.

    The model writes the columns it computes; the caller decides which columns those are. Under bidirectional attention
    cached columns are outdated and the result is an approximation. Under causal attention, and between the blocks of
    block-causal attention, the columns left of a window do not depend on it, and the result is exact.
    """

    def __init__(self) -> None:
        self._layers: list[_Layer] = []

    def window(self, layer: int, start: int, num_columns: int) -> "LayerWindow":
        """View of one layer for a pass that computes columns from `start` on and attends to `num_columns`."""
        while len(self._layers) <= layer:
            self._layers.append(_Layer())
        return LayerWindow(self._layers[layer], start, num_columns)

    def of_rows(self, rows: list[int]) -> "KeyValueCache":
        """A copy of these rows, in this order."""
        cache = KeyValueCache()
        cache._layers = [layer.of_rows(rows) for layer in self._layers]
        return cache


@dataclass(frozen=True, eq=False)
class LayerWindow:
    """The columns of one layer that a forward pass writes."""

    _layer: "_Layer"
    _start: int
    _num_columns: int

    def write(self, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Replaces the columns of the window. Returns the keys and values of all columns, (B, C, K, D) each."""
        stop = self._start + k_BTKD.shape[1]
        if self._start == 0 and stop == self._num_columns:
            self._layer.replace(k_BTKD, v_BTKD)
            return k_BTKD, v_BTKD
        return self._layer.update(k_BTKD, v_BTKD, slice(self._start, stop), self._num_columns)


class _Layer:
    _keys: Tensor
    _values: Tensor

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values of a full pass, (B, C, K, D)."""
        self._keys, self._values = keys, values

    def update(self, keys: Tensor, values: Tensor, columns: slice, num_columns: int) -> tuple[Tensor, Tensor]:
        """Overwrite these columns. Returns keys and values of the first `num_columns` columns."""
        if columns.stop > self._keys.shape[1]:
            self._keys, self._values = _grow(self._keys, columns.stop), _grow(self._values, columns.stop)
        self._keys[:, columns] = keys
        self._values[:, columns] = values
        return self._keys[:, :num_columns], self._values[:, :num_columns]

    def of_rows(self, rows: list[int]) -> "_Layer":
        index = torch.tensor(rows, dtype=torch.int64, device=self._keys.device)
        layer = _Layer()
        layer.replace(self._keys[index], self._values[index])
        return layer


def _grow(heads_BCKD: Tensor, num_columns: int) -> Tensor:
    """Enlarges to at least `num_columns`; doubles, so that token-by-token generation rarely copies the cache."""
    B, C, K, D = heads_BCKD.shape
    grown = heads_BCKD.new_empty(B, max(2 * C, num_columns), K, D)
    grown[:, :C] = heads_BCKD
    return grown
