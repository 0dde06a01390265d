"""Named parameters to one vector and back."""

import pytest
import torch

from metaprox.vectors.layout import Layout
from metaprox.vectors.norms import all_finite


def test_round_trip_keeps_names_shapes_values_and_dtypes():
    params = {
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
        "matrix": torch.arange(6.0).view(2, 3).T,  # not contiguous
        "wide": torch.tensor([1e-300], dtype=torch.float64),
    }
    layout = Layout.of(params)
    flat = layout.flatten(params)
    assert flat.shape == (8,)
    assert flat.dtype == torch.float64
    back = layout.unflatten(flat)
    assert list(back) == list(params)
    for name, value in params.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


def test_leading_dimensions_are_kept():
    layout = Layout.of({"a": torch.zeros(2, 2), "b": torch.zeros(3)})
    batch = torch.arange(42.0).view(3, 2, 7)
    parts = layout.unflatten(batch)
    assert parts["a"].shape == (3, 2, 2, 2)
    assert torch.equal(parts["b"], batch[..., 4:])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kinds", [[torch.float32] * 3, [torch.float32, torch.float64, torch.float32]])
def test_all_finite_sees_each_number(value, kinds):
    tensors = [torch.randn(n, 3).to(kind) for n, kind in zip((1, 0, 40), kinds, strict=True)]
    assert all_finite(tensors)
    assert all_finite([])
    tensors[2][17, 1] = value
    assert not all_finite(tensors)
    Layout.of({"a": torch.full((2,), 3e38), "b": torch.full((2,), 3e38)})  # whose sum is not
