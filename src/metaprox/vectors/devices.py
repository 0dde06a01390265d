"""What devices differ in that vectors are on."""

import torch


def launches(device: torch.device) -> bool:
    """Returns whether operations are launched there, from here, which takes longer than a small one itself.

    Few of whole vectors are then the faster ones; elsewhere it is many of blocks that stay in the processor's cache.
    """
    return device.type != "cpu"
