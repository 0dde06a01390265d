"""An ``nn.Module`` as a loss of named tensors: the one place that gives a model other weights."""
