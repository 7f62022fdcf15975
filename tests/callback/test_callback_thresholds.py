"""Thresholds as a vector on the device: units, what registers, what stays."""

import math

import pytest
import torch

from snc_client.callback.monitor.enforcement import MARGIN, MOST_MARGIN, PER_LAG, presumed
from snc_client.callback.monitor.thresholds import Thresholds
from snc_client.estimator import LAG

CPU = torch.device("cpu")


def test_each_unit_gives_its_threshold_and_none_is_infinite():
    thresholds = Thresholds([2.0, 2.0, 2.0, 2.0], CPU)
    thresholds.set([3.0, 3.0, 3.0, math.inf], ["absolute", "rms", "init", "absolute"])
    assert thresholds.value.tolist() == [3.0, 6.0, math.inf, math.inf]  # init: not known yet
    thresholds.register(torch.tensor([1.0, 1.0, 5.0, 1.0]))
    assert thresholds.value.tolist() == [3.0, 6.0, 15.0, math.inf]


def test_the_first_finite_sigma_is_the_reference_and_later_ones_are_not():
    thresholds = Thresholds([1.0, 1.0], CPU)
    thresholds.set([2.0, 2.0], ["init", "init"])
    thresholds.register(torch.tensor([math.nan, 4.0]))
    assert thresholds.value.tolist() == [math.inf, 8.0]
    thresholds.register(torch.tensor([3.0, 9.0]))
    assert thresholds.value.tolist() == [6.0, 8.0]


def test_another_policy_keeps_the_reference():
    thresholds = Thresholds([1.0], CPU)
    thresholds.register(torch.tensor([4.0]))
    thresholds.set([0.5], ["absolute"])
    thresholds.register(torch.tensor([1.0]))
    thresholds.set([2.0], ["init"])
    assert thresholds.value.tolist() == [8.0]


@pytest.mark.parametrize(("first", "unit"), [(0.0, 1.5), (0.99e-3, 1.5), (1.01e-3, 1.01e-3)])
def test_a_layer_registered_below_a_thousandth_takes_the_rms_unit(first, unit):
    thresholds = Thresholds([1.5], CPU)
    thresholds.set([3.0], ["init"])
    thresholds.register(torch.tensor([first]))
    assert thresholds.value.item() == pytest.approx(3 * unit)


def test_the_presumed_bound_widens_with_the_residual_and_within_limits():
    sigma = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.0, math.nan])
    residual = torch.tensor([0.0, 2 * LAG, 2 * (LAG + 0.1), 2.0, 0.0, math.nan])
    bound = presumed(sigma, residual).tolist()
    least, lagging = 1 + MARGIN, 1 + MARGIN + 0.1 * PER_LAG
    assert bound[:4] == pytest.approx([2 * least, 2 * least, 2 * lagging, 2 * (1 + MOST_MARGIN)])
    assert all(math.isnan(x) for x in bound[4:]), "nothing to divide by: the weight is left alone"
