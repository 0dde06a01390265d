"""Named parameters to one vector and back."""

import torch

from metaprox.vectors.layout import Layout


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
