"""Every image classifier of transformers answers as transformers does, or is refused with the reason.

A quarter of them, another one each day, is checked in every run; all of them in the slow one.
"""

from datetime import date

import pytest

from fewshard_models.conformance.image import ARCHITECTURES, compare
from fewshard_models.conformance.matrix import share_of_the_day

REFUSED = {
    "dinat": "natten",
    "pp_lcnet": "torchvision",
    "shieldgemma2": "a policy that a text states",
    "timm_wrapper": "timm",
}
"""What each reason must name."""

OF_THE_DAY = share_of_the_day(list(ARCHITECTURES), date.today().toordinal(), 4)


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(each, marks=() if each in OF_THE_DAY else pytest.mark.slow) for each in ARCHITECTURES],
)
def test_an_image_classifier_is_right_or_refused(model_type, tmp_path):
    found = compare(model_type, tmp_path)
    assert not found.faults
    assert REFUSED.get(model_type, "") in found.reason
    assert found.is_served == (model_type not in REFUSED)


def test_at_least_nine_tenths_are_served():
    assert len(REFUSED) <= len(ARCHITECTURES) / 10
