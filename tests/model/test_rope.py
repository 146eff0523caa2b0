import torch

from lit_illada.model.rope import rotate, rotation


def test_scores_depend_on_the_distance_only():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator).expand(1, 40, 1, 16) for _ in range(2))
    by = rotation(torch.arange(40)[None], 16, 10000.0)
    scores = rotate(q, by)[0, :, 0] @ rotate(k, by)[0, :, 0].T
    for distance in (-7, 0, 3):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)


def test_rotation_preserves_length_and_dtype_and_position_zero():
    x = torch.randn(1, 5, 2, 8, generator=torch.Generator().manual_seed(0))
    by = rotation(torch.arange(5)[None], 8, 100.0)
    torch.testing.assert_close(rotate(x, by).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate(x, by)[:, 0], x[:, 0])
    assert rotate(x.bfloat16(), by).dtype is torch.bfloat16


def test_mixed_precision_of_fsdp_cannot_reach_the_angles():
    """FSDP casts the tensor leaves of a block's arguments."""
    leaves = torch.utils._pytree.tree_leaves(rotation(torch.arange(5)[None], 8, 100.0))
    assert not any(isinstance(leaf, torch.Tensor) for leaf in leaves)
