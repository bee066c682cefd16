"""Every image classifier of transformers answers as transformers does, or is refused with the reason.

A quarter of them, another one each day, is checked in every run; all of them in the slow one.
"""

from datetime import date

import pytest

from fewshard_models.conformance.image import ARCHITECTURES, check_image_architecture

REFUSED = {
    "dinat": "natten",
    "pp_lcnet": "torchvision",
    "shieldgemma2": "a policy that a text states",
    "timm_wrapper": "timm",
}
"""What each reason must name."""

TODAY = date.today().toordinal() % 4


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(architecture, marks=() if number % 4 == TODAY else pytest.mark.slow)
        for number, architecture in enumerate(ARCHITECTURES)
    ],
)
def test_an_image_classifier_is_right_or_refused(architecture, tmp_path):
    found = check_image_architecture(architecture, tmp_path)
    assert not found.faults
    assert REFUSED.get(found.model_type, "") in found.refusal
    assert bool(found.refusal) == (found.model_type in REFUSED)


def test_at_least_nine_tenths_are_served():
    assert len(REFUSED) <= len(set(ARCHITECTURES.values())) / 10
