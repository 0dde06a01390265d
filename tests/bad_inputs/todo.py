"""Inputs whose outcome is not yet the wanted one, by the module that is to be mended; the test fails once one is."""

TODO: dict[str, tuple[str, ...]] = {}
MODULE_OF = {label: module for module, labels in TODO.items() for label in labels}
