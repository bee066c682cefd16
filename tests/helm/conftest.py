"""The chart, loaded once, and KubeRay's CRD where it is at hand."""

import os

import pytest

import chart_validate
from chart_render import Renderer


@pytest.fixture(scope="session")
def renderer():
    return Renderer()


@pytest.fixture
def render(renderer):
    """Objects of these values over the chart's own."""
    return renderer.render


@pytest.fixture(scope="session")
def crd():
    schema = chart_validate.crd_schema()
    if schema is None:
        assert not os.environ.get(chart_validate.CRD_VARIABLE)
        pytest.skip(f"{chart_validate.CRD_VARIABLE} does not name KubeRay's RayService CRD")
    return schema
