"""Sigma of a matrix whose pieces lie in several places, summed here by hand: no processes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from snc_client.certificate import upper_of_gram
from snc_client.estimator.sharded_power import ShardedPower, Sums, bands
from snc_client.operators.sharded import Rectangle, ShardedMatrix, flat_boxes

CPU = torch.device("cpu")


def by_rows(weight: Tensor, cuts: list[int]) -> list[ShardedMatrix]:
    spans = itertools.pairwise([0, *cuts, len(weight)])
    return [
        ShardedMatrix(tuple(weight.shape), (Rectangle(weight[a:b], a, 0),), ()) for a, b in spans
    ]


def by_columns(weight: Tensor, cuts: list[int]) -> list[ShardedMatrix]:
    spans = itertools.pairwise([0, *cuts, weight.shape[1]])
    shape = tuple(weight.shape)
    return [ShardedMatrix(shape, (Rectangle(weight[:, a:b], 0, a),), (), axis=1) for a, b in spans]


def flat(weight: Tensor, cuts: list[int]) -> list[ShardedMatrix]:
    memory, columns = weight.flatten(), weight.shape[1]
    torn = tuple(sorted({cut // columns for cut in cuts if cut % columns}))
    return [
        ShardedMatrix(
            tuple(weight.shape),
            tuple(
                Rectangle(box.local, *box.start) for box in flat_boxes(memory[a:b], a, weight.shape)
            ),
            (),
            torn=torn,
        )
        for a, b in itertools.pairwise([0, *cuts, len(memory)])
    ]


class Places:
    """Several places that hold pieces of one matrix, with a power iteration each."""

    def __init__(self, matrices: list[ShardedMatrix]) -> None:
        first = matrices[0]
        sides = [(first.shape[first.axis], first.small)]
        self.powers = [ShardedPower(sides, device=CPU, block=16) for _ in matrices]

    def sigma(self, matrices: list[ShardedMatrix]) -> list[float]:
        vectors = [power.explored(0) for power in self.powers]
        pairs = list(zip(self.powers, matrices, vectors, strict=True))
        ahead = [power.ahead(0, matrix, v) for power, matrix, v in pairs]
        shares = [
            power.share(matrix, v, u, first=True)
            for (power, matrix, v), u in zip(pairs, ahead, strict=True)
        ]
        total = Sums(
            x_BN=sum(x.x_BN for x in shares),
            r_BB=sum(x.r_BB for x in shares),
            bands=sum(bands(x.largest) for x in shares),
            torn_TN=sum(x.torn_TN for x in shares),
        )
        yes = torch.tensor([True])
        return [power.finish([v], [total], yes, yes).sigma.item() for power, _, v in pairs]


def norm(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.double(), 2))


WAYS = {
    "rows": (by_rows, [5, 5, 30]),  # the second one has none
    "columns": (by_columns, [1, 17]),
    "flat memory": (flat, [3, 24 * 7 + 5, 24 * 7 + 9, 24 * 20]),
    "flat memory within one row": (flat, [24 * 3 + 1, 24 * 3 + 2]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e18, 1e30])
def test_every_place_finds_sigma_of_the_whole_matrix_to_the_same_bit(way, scale):
    cut, cuts = WAYS[way]
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(0)) * scale
    matrices = cut(weight, cuts)
    places = Places(matrices)
    for _ in range(30):
        found = places.sigma(matrices)
    assert len(set(found)) == 1
    exact = norm(weight)
    assert exact * (1 - 1e-4) <= found[0] <= exact * (1 + 2e-6)


def test_a_jump_of_many_orders_is_never_taken_for_a_number_and_is_found_soon():
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    matrices = by_rows(weight, [20])
    places = Places(matrices)
    for _ in range(5):
        places.sigma(matrices)
    weight.mul_(2.0**90)
    found = [places.sigma(matrices)[0] for _ in range(25)]
    exact = norm(weight)
    assert all(math.isnan(x) or x <= exact * (1 + 2e-6) for x in found)
    assert found[-1] >= exact * (1 - 1e-3)


def test_a_matrix_that_is_not_finite_has_no_sigma_and_recovers():
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    matrices = by_rows(weight, [20])
    places = Places(matrices)
    places.sigma(matrices)
    kept, weight[3, 3] = weight[3, 3].clone(), math.inf
    assert math.isnan(places.sigma(matrices)[0])
    weight[3, 3] = kept
    for _ in range(25):
        found = places.sigma(matrices)
    assert found[0] >= norm(weight) * (1 - 1e-3)


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_a_matrix_of_few_rows_keeps_its_sigma_while_a_vector_explores(rows):
    weight = torch.randn(rows, 24, generator=torch.Generator().manual_seed(0))
    matrices = by_rows(weight, [1])
    places = Places(matrices)
    for _ in range(20):
        places.sigma(matrices)
    for _ in range(20):
        assert places.sigma(matrices)[0] >= norm(weight) * (1 - 1e-3)


def test_the_bound_of_a_gram_matrix_summed_in_parts_lies_just_above_the_norm():
    for seed in range(40):
        weight = torch.randn(50, 12, generator=torch.Generator().manual_seed(seed))
        parts = [rows.double().mT @ rows.double() for rows in weight.split([3, 0, 30, 17])]
        exact = norm(weight)
        upper = upper_of_gram(sum(parts), 50, torch.tensor(exact * (1 - 1e-5)))
        assert exact <= upper.item() <= exact * (1 + 1.01e-3)


def test_the_boxes_of_an_interval_of_flat_memory_are_its_entries_and_no_others():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        shape = tuple(torch.randint(1, 5, (3,), generator=generator).tolist())
        whole = torch.arange(1.0, math.prod(shape) + 1)
        cuts = torch.randint(0, len(whole) + 1, (2,), generator=generator)
        start, stop = sorted(cuts.tolist())
        boxes, rebuilt = flat_boxes(whole[start:stop], start, shape), torch.zeros(shape)
        for box in boxes:
            spans = zip(box.start, box.local.shape, strict=True)
            rebuilt[tuple(slice(a, a + size) for a, size in spans)] += box.local
        expected = torch.where((whole > start) & (whole <= stop), whole, 0)
        assert torch.equal(rebuilt.flatten(), expected)
        assert len(boxes) <= 5
