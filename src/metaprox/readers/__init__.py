"""Readers of what people have: pictures in folders, texts and numbers in tables. Pictures and Parquet need ``data``."""

from metaprox.readers.columns import Columns
from metaprox.readers.images import read_images
from metaprox.readers.pictures import Pictures
from metaprox.readers.tables import read_tables
from metaprox.readers.texts import read_texts
from metaprox.readers.tokens import Texts

__all__ = ["Columns", "Pictures", "Texts", "read_images", "read_tables", "read_texts"]
