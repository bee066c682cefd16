#!/usr/bin/env bash
# numpy 2.4.6 and scipy 1.17.1: the method "inverted_cdf" is one value off where share x count is rounded up.
#
# A good engineer expects: of 50 ordered values, the inverse of the empirical distribution at 0.14 is the 7th (7 of 50
# are 14 %); this method exists to give the exact nearest rank, with no interpolation (Hyndman and Fan 1996, type 1).
# What happens: both libraries compute 0.14 * 50 = 7.000000000000001 in floating point, and take the 8th. At 0.28 of
# 50 and many other round shares likewise; shares such as 0.5, 0.9, 0.95 and 0.99 are right.
# Seen: 8 and 8 where 7 is right. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" - <<'PROGRAM'
from fractions import Fraction
from math import ceil

import numpy as np
from scipy import stats

values = np.arange(1, 51)
right = ceil(Fraction(14, 100) * 50)
by_numpy = int(np.quantile(values, 0.14, method="inverted_cdf"))
by_scipy = int(stats.quantile(values, 0.14, method="inverted_cdf"))
print(f"numpy {np.__version__}: {by_numpy}, scipy: {by_scipy}, exact: {right}")
assert (by_numpy, by_scipy, right) == (8, 8, 7), "changed: it was (8, 8, 7)"
PROGRAM
