"""Rejects weights that no trained model has: NaN, infinity and values beyond the range of float16."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from lit_illada.errors import UserError

LARGEST_WEIGHT = 65504.0  # the largest float16; weights of published models are below a few thousand


class CheckedTensors(Mapping[str, Tensor]):
    """Tensors by name, checked on first access. Raises UserError that names `origin` and the tensor."""

    def __init__(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        self._tensors, self._origin = tensors, origin
        self._checked: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if name not in self._checked:
            check_weights(name, tensor, self._origin)
            self._checked.add(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def check_weights(name: str, tensor: Tensor, origin: str) -> None:
    """Raises UserError unless every absolute value is finite and at most LARGEST_WEIGHT; allocates no copy."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    low, high = map(float, tensor.aminmax())  # both NaN where any value is
    if low >= -LARGEST_WEIGHT and high <= LARGEST_WEIGHT:
        return
    num_bad = int((~(tensor.abs() <= LARGEST_WEIGHT)).sum())
    example = float(tensor[~(tensor.abs() <= LARGEST_WEIGHT)][0])
    raise UserError(
        f"{origin}: {name} has {num_bad:,} of {tensor.numel():,} values that are not finite or above "
        f"{LARGEST_WEIGHT:g} (one is {example:g}): the weights are damaged or of a diverged run; use an earlier "
        "checkpoint or another copy"
    )
