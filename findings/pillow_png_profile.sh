#!/usr/bin/env bash
# Pillow 13.0.0: a PNG with a colour profile above 1 MiB cannot be opened; the same image as JPEG, TIFF or WebP can.
#
# A good engineer expects: a profile is a side matter; where it is unwanted it is left out, and the pixels are read. The
# limit is documented as one of text chunks (`PngImagePlugin.MAX_TEXT_CHUNK`).
# What happens: the limit holds for the chunk iCCP too, and a larger profile ends the whole file with a ValueError, which is
# not the UnidentifiedImageError or OSError that callers of `Image.open` catch. Device profiles with tables for each
# colour can be that large, and Pillow itself writes such a PNG that it then refuses.
# Seen: ValueError for the PNG; JPEG, TIFF and WebP give size and profile. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
"$folder/venv/bin/python" - <<'PROGRAM'
from io import BytesIO

import PIL
from PIL import Image

profile = bytes(range(256)) * 6000  # 1.5 MB
found = {}
for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind, icc_profile=profile)
    try:
        with Image.open(file) as image:
            image.load()
            found[kind] = f"{image.size}, profile of {len(image.info['icc_profile']):,} bytes"
    except ValueError as error:
        found[kind] = f"{type(error).__name__}: {error}"
print(f"Pillow {PIL.__version__}")
for kind, what in found.items():
    print(f"{kind}: {what}")
read = "(4, 4), profile of 1,536,000 bytes"
assert found.pop("PNG").startswith("ValueError"), "changed: it was a ValueError"
assert set(found.values()) == {read}, "the other formats changed"
PROGRAM
