#!/usr/bin/env bash
# transformers 5.23.0: an image processor takes an array 3 pixels high for one with its channels first.
#
# A good engineer expects: an array [height, width, 3] of bytes, the layout of Pillow and OpenCV, is read as that at every
# size; `np.asarray(image)` and `image` give the same tensor.
# What happens: the channel axis is guessed from the shape, and a first axis of 1, 3 or 4 goes before the last. Of an image
# 3 pixels high the rows become the colours and the colours the columns. Nothing warns; with
# `input_data_format="channels_last"` it is right.
# Seen: the pixels of an image of 3 x 40 differ by 255 between image and array; of one of 5 x 40 by 0. The script fails when
# that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile transformers==5.23.0 pillow==13.0.0 numpy==2.4.6
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PROGRAM'
import numpy as np
import transformers
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

PLAIN = {"size": {"height": 6, "width": 6}, "do_rescale": False, "do_normalize": False, "return_tensors": "np"}
process = ViTImageProcessorPil()


def difference(height: int, **options: str) -> float:
    pixels = np.zeros((height, 40, 3), np.uint8)
    pixels[..., 0] = 255  # red
    image = process(Image.fromarray(pixels), **PLAIN)["pixel_values"]
    array = process(pixels, **PLAIN, **options)["pixel_values"]
    return float(np.abs(image.astype(float) - array.astype(float)).max())


found = {
    "3 x 40": difference(3),
    "5 x 40": difference(5),
    "3 x 40, axis named": difference(3, input_data_format="channels_last"),
}
print(f"transformers {transformers.__version__}: largest differences between image and array: {found}")
assert list(found.values()) == [255.0, 0.0, 0.0], "changed: it was 255, 0 and 0"
PROGRAM
