"""What a forward pass leaves behind for the next one: the keys and values of tokens that are not computed again.

Shapes: B rows, T tokens computed now, C columns of the rows, K key-value heads, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


class KeyValueCache:
    """Every layer's keys and values at every column of the rows, as last computed.

    The model writes what it computes; whoever holds the cache decides which columns are computed again. Under
    bidirectional attention the others are as old as their last pass, and the result is an approximation; under causal
    attention nothing to the left of a window depends on it, and the result is exact.
    """

    def __init__(self) -> None:
        self._layers: list[_Layer] = []

    def window(self, layer: int, start: int, num_columns: int) -> "LayerWindow":
        """One layer's view for a pass over the columns from `start` on, of `num_columns` that are seen."""
        while len(self._layers) <= layer:
            self._layers.append(_Layer())
        return LayerWindow(self._layers[layer], start, num_columns)

    def keep(self, rows: list[int]) -> None:
        """Keep these of its rows, in this order."""
        for layer in self._layers:
            layer.keep(rows)


@dataclass(frozen=True, eq=False)
class LayerWindow:
    """Where one layer puts what it has just computed."""

    _layer: "_Layer"
    _start: int
    _num_columns: int

    def write(self, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Replaces the window's columns; returns the keys and values of all columns seen, (B, C, K, D)."""
        stop = self._start + k_BTKD.shape[1]
        if self._start == 0 and stop == self._num_columns:
            self._layer.replace(k_BTKD, v_BTKD)
            return k_BTKD, v_BTKD
        return self._layer.update(k_BTKD, v_BTKD, slice(self._start, stop), self._num_columns)


class _Layer:
    _keys: Tensor
    _values: Tensor

    def replace(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values

    def update(self, keys: Tensor, values: Tensor, columns: slice, num_columns: int) -> tuple[Tensor, Tensor]:
        if columns.stop > self._keys.shape[1]:
            self._keys, self._values = _grown(self._keys, columns.stop), _grown(self._values, columns.stop)
        self._keys[:, columns] = keys
        self._values[:, columns] = values
        return self._keys[:, :num_columns], self._values[:, :num_columns]

    def keep(self, rows: list[int]) -> None:
        index = torch.tensor(rows, dtype=torch.int64, device=self._keys.device)
        self._keys, self._values = self._keys[index], self._values[index]


def _grown(heads_BCKD: Tensor, num_columns: int) -> Tensor:
    """With room for at least so many columns: doubled, so that a text growing token by token is rarely copied."""
    B, C, K, D = heads_BCKD.shape
    grown = heads_BCKD.new_empty(B, max(2 * C, num_columns), K, D)
    grown[:, :C] = heads_BCKD
    return grown
