"""The graph-captured step, on a tape instead of a GPU: the work of `BlockPower` to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from no_host_sync import NoHostSync
from spectra import gaussian, norm
from tape import record
from torch import Tensor, nn

from snc_client import SNCallback
from snc_client.estimator import BlockPower, warm_blocks
from snc_client.estimator.graph import KINDS, MOST_RECORDINGS, GraphPower
from snc_client.operators import BlockDiagonal, LowRank, Matrix, Operator

CPU = torch.device("cpu")
SHAPES = [(60, 40), (40, 60), (60, 40), (9, 5), (16, 16), (1, 30)]


@pytest.fixture(autouse=True)
def _the_host_may_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snc_client.estimator.block_power.reading_is_free", lambda device: False)


def weights() -> list[Tensor]:
    return [gaussian(*shape, seed=i) for i, shape in enumerate(SHAPES)]


def move(some: list[Tensor], step: int) -> None:
    """Change weights where they lie, as an optimizer does."""
    for i, w in enumerate(some):
        w.add_(0.02 * gaussian(*w.shape, seed=100 * step + i))


def pair(
    shapes: list[tuple[int, int]] = SHAPES, **keywords: object
) -> tuple[BlockPower, GraphPower]:
    plain = BlockPower(shapes, device=CPU, seed=4)
    return plain, GraphPower(shapes, device=CPU, seed=4, **{"record": record, **keywords})


def assert_same_step(
    plain: BlockPower,
    graph: GraphPower,
    operators: list[Operator],
    which: list[int] | None = None,
) -> None:
    a, b = plain.step_(operators, which), graph.step_(operators, which)
    assert torch.equal(a.sigma, b.sigma)
    assert torch.equal(a.residual, b.residual)


def test_replayed_steps_are_those_of_the_plain_way_to_the_bit() -> None:
    moving = weights()
    operators: list[Operator] = [Matrix(w) for w in moving]
    plain, graph = pair()
    for step in range(60):  # four iterations a call at first, then one: every explorer restarts
        move(moving, step)
        assert_same_step(plain, graph, operators)
    assert graph.recordings == 1
    assert graph.state_dict()["steps"] == plain.state_dict()["steps"]


def test_every_kind_of_operator_can_be_recorded() -> None:
    stack, left, right = gaussian(4, 30).reshape(4, 5, 6), gaussian(20, 3), gaussian(3, 25)
    operators: list[Operator] = [
        BlockDiagonal(stack),
        LowRank(left, right),
        Matrix(gaussian(33, 21).T),
        Matrix(gaussian(18, 22).bfloat16()),
    ]
    plain, graph = pair([(op.shape[0], op.shape[1]) for op in operators])
    for _ in range(4):
        for w in (stack, left, right):
            w.mul_(1.1)
        assert_same_step(plain, graph, operators)
    assert graph.recordings == 1


def test_a_step_of_the_graph_waits_for_nothing() -> None:
    operators: list[Operator] = [Matrix(w) for w in weights()]
    _, graph = pair()
    graph.step_(operators)
    graph.step_(operators)
    with NoHostSync():
        for _ in range(3):
            graph.step_(operators)


def test_a_weight_that_is_not_finite_heals_in_the_graph_too() -> None:
    moving = weights()
    operators: list[Operator] = [Matrix(w) for w in moving]
    plain, graph = pair()
    for _ in range(3):
        assert_same_step(plain, graph, operators)
    kept = moving[0].clone()
    moving[0].fill_(torch.nan)
    for _ in range(2):
        assert plain.step_(operators).sigma[0].isnan()
        assert graph.step_(operators).sigma[0].isnan()
    moving[0].copy_(kept)
    for _ in range(12):
        assert_same_step(plain, graph, operators)
    assert float(graph.step_(operators).sigma[0]) == pytest.approx(norm(kept), rel=1e-3)


@pytest.mark.parametrize("change", [lambda w: 3 * w, lambda w: w.double(), lambda w: w.T.clone().T])
def test_a_weight_at_another_address_of_another_dtype_or_layout_is_recorded_anew(
    change: Callable[[Tensor], Tensor],
) -> None:
    moving = weights()
    plain, graph = pair()
    for _ in range(3):
        assert_same_step(plain, graph, [Matrix(w) for w in moving])
    moving[2] = change(moving[2])
    for _ in range(3):
        assert_same_step(plain, graph, [Matrix(w) for w in moving])
    assert graph.recordings == 2


def test_calls_on_some_layers_and_refills_go_the_plain_way_and_the_graph_goes_on() -> None:
    operators: list[Operator] = [Matrix(w) for w in weights()]
    plain, graph = pair()
    for _ in range(3):
        assert_same_step(plain, graph, operators)
        assert_same_step(plain, graph, [operators[4], operators[1]], [4, 1])
        assert_same_step(plain, graph, operators, list(range(len(SHAPES))))
        for blocks in (plain, graph):
            blocks.refill_(torch.tensor([True] + [False] * (len(SHAPES) - 1)))
    assert graph.recordings == 1


def test_a_loaded_state_is_continued_from() -> None:
    operators: list[Operator] = [Matrix(w) for w in weights()]
    plain, graph = pair()
    for _ in range(5):
        assert_same_step(plain, graph, operators)
    state = plain.state_dict()
    for _ in range(3):
        graph.step_(operators)
    graph.load_state_dict(state)
    for _ in range(3):
        assert_same_step(plain, graph, operators)


def test_a_hurried_layer_makes_all_of_them_iterate() -> None:
    operators: list[Operator] = [Matrix(w) for w in weights()]
    _, graph = pair()
    for _ in range(40):
        graph.step_(operators)
    before = graph.state_dict()["steps"][0]
    graph.hurry([3])
    graph.step_(operators)
    graph.step_(operators)
    assert graph.state_dict()["steps"][0] == before + 4 + 1


def test_where_recording_fails_the_plain_way_remains(caplog: pytest.LogCaptureFixture) -> None:
    def fails(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    operators: list[Operator] = [Matrix(w) for w in weights()]
    plain, graph = pair(record=fails)
    for _ in range(12):
        assert_same_step(plain, graph, operators)
    assert graph.recordings == 1
    assert [r.message for r in caplog.records] == [
        "snc: no graph could be recorded, measuring is slower"
    ]


def test_weights_that_never_keep_their_address_stop_being_recorded() -> None:
    plain, graph = pair([(30, 20)])
    kept = []  # freed memory might be given out again at the same address
    for _ in range(MOST_RECORDINGS + 8):
        kept.append(gaussian(30, 20))
        assert_same_step(plain, graph, [Matrix(kept[-1])])
    assert graph.recordings == MOST_RECORDINGS


def test_an_operator_that_does_not_say_what_it_reads_is_never_recorded() -> None:
    class Silent:
        def __init__(self) -> None:
            self.shape = (30, 20)
            self._w = gaussian(*self.shape)

        def matmul(self, v: Tensor) -> Tensor:
            return self._w @ v

        def rmatmul(self, u: Tensor) -> Tensor:
            return self._w.T @ u

    plain, graph = pair([(30, 20)])
    silent = Silent()
    for _ in range(4):
        assert_same_step(plain, graph, [silent])
    assert graph.recordings == 0


def test_no_layers_is_no_trouble() -> None:
    _, graph = pair([])
    assert graph.step_([]).sigma.shape == (0,)


def test_a_graph_is_for_cuda_devices_and_only_where_it_is_asked_for(monkeypatch) -> None:
    assert KINDS == {"cuda": GraphPower}
    monkeypatch.setitem(KINDS, "cpu", lambda shapes, **keywords: GraphPower(shapes, **keywords))
    for asked, kind in (("", BlockPower), ("0", BlockPower), ("1", GraphPower)):
        monkeypatch.setenv("SNC_CUDA_GRAPH", asked)
        assert type(warm_blocks([(3, 4)], device=CPU)) is kind
    monkeypatch.delenv("SNC_CUDA_GRAPH")
    assert type(warm_blocks([(3, 4)], device=CPU)) is BlockPower


def train_under_callback() -> tuple[list[Tensor], list[float | None], SNCallback]:
    """Return weights and sigmas of a short training that is held, certified and continued."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20), nn.Linear(20, 3))
    callback = SNCallback(model, threshold="1.1x init", certify_every=5)
    sigmas: list[float | None] = []
    for step in range(30):
        model.zero_grad()
        (model(torch.randn(8, 20)) - 1).square().mean().backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.3 * p.grad)
        if step == 12:  # other tensors under the same names
            copies = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(copies, assign=True)
        if step == 20:
            callback.load_state_dict(callback.state_dict())
        callback.step()
        sigmas += [reading["sigma"] for reading in callback.latest.values()]
    callback.close()
    assert callback.errors == 0
    return [p.detach() for p in model.parameters()], sigmas, callback


def test_a_training_is_measured_and_held_alike_with_a_graph(monkeypatch) -> None:
    monkeypatch.setattr(
        "snc_client.callback.monitor.device_group.reading_is_free", lambda device: False
    )
    monkeypatch.setattr(
        "snc_client.callback.monitor.layer_monitor.reading_is_free", lambda device: False
    )
    monkeypatch.setattr(
        "snc_client.callback.monitor.step_planner.reading_is_free", lambda device: False
    )
    plain, sigmas, _ = train_under_callback()
    made: list[GraphPower] = []

    def graph(shapes: list[tuple[int, int]], **keywords: Any) -> GraphPower:
        made.append(GraphPower(shapes, record=record, **keywords))
        return made[-1]

    monkeypatch.setitem(KINDS, "cpu", graph)
    monkeypatch.setenv("SNC_CUDA_GRAPH", "1")
    weights_now, sigmas_now, _ = train_under_callback()
    assert all(torch.equal(a, b) for a, b in zip(plain, weights_now, strict=True))
    assert sigmas == sigmas_now
    # At the start; for the weights put in another's place, whose group is formed anew; for
    # the state that was loaded.
    assert [power.recordings for power in made if power.recordings] == [1, 1, 1]
