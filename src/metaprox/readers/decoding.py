"""Files of pictures decoded by Pillow: one frame, upright, in 8 bits, without transparency; or why it is none."""

import io
from typing import Any

import torch
from torch import Tensor

from metaprox.errors import needs_extra
from metaprox.readers.archives import content_of

with needs_extra("reading pictures", "data"):
    from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
LARGEST_PICTURE = 50_000_000  # pixels
MODES = {1: "L", 3: "RGB"}
# What Pillow raises at files that are damaged or made to do damage. Warning: of bombs, where warnings are errors.
BROKEN = (OSError, SyntaxError, MemoryError, EOFError, IndexError, Image.DecompressionBombError, Warning)


def pixels_of(item: Any, size: int, channels: int, fit: str) -> Tensor:
    """One picture, uint8 [channels, size, size]. Raises ValueError, saying why, where it is none."""
    image = item if isinstance(item, Image.Image) else _opened(item)
    if image.width * image.height > LARGEST_PICTURE:
        raise ValueError(f"{image.width} x {image.height} pixels are more than {LARGEST_PICTURE}")
    try:
        if image is not item:
            image.draft(MODES[channels], (2 * size, 2 * size))  # large JPEG files at a smaller scale
        image = _squared(_flat(ImageOps.exif_transpose(image)).convert(MODES[channels]), size, fit)
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    except BROKEN as error:
        raise ValueError(f"not a whole picture: {' '.join(str(error).split()) or type(error).__name__}") from error
    return flat.view(size, size, channels).permute(2, 0, 1).contiguous()


def _opened(item: Any) -> Image.Image:
    data = content_of(item)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"not a picture of the kinds {', '.join(FORMATS)}") from error
    except BROKEN as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _squared(image: Image.Image, size: int, fit: str) -> Image.Image:
    how = Image.Resampling.BILINEAR
    if image.size == (size, size):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (size, size), how)
    if fit == "pad":
        return ImageOps.pad(image, (size, size), how, color="white")
    return image.resize((size, size), how)


def _flat(image: Image.Image) -> Image.Image:
    """In 8 bits, what is transparent in white."""
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of the mode {image.mode}, whose white is unknown: save it in 8 or 16 bits")
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 257).convert("L")  # convert alone would cut what is above 255
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image
