"""Hostile rows: rules that go on from stored bytes judge them as rules that were never stored."""

import math

import numpy as np
import pytest

from snc_service.detect import onset
from snc_service.detect.rules import RunRules
from snc_service.store.types import Event, RunRows
from snc_service.store.types.annotations import Annotation
from snc_service.wire import ABSENT, Batch, LayerTable, RuleSettings
from snc_service.wire.rule_settings import SHIPPED

METRICS = ("sigma", "threshold", "scale", "frobenius", "grad_norm", "update_norm", "guard")
SCALARS = ("loss", "lr", "grad_norm", "skipped_steps", "moving_target", "guard_vetoes")
ODD = np.array(
    [0, -0.0, 1e-45, 1e-38, 1e-7, 1, 2, 1e19, 1e38, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan],
    np.float32,
)
TABLES = (("a", "b", "c"), ("c", "d", "e", "f", "g"), ("h",))


def numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return healthy values, any bits, odd numbers, or values of which many are missing."""
    found = (1 + 0.05 * rng.standard_normal(shape)).astype(np.float32)
    match int(rng.integers(0, 8)):
        case 0:
            found = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
        case 1:
            found = rng.choice(ODD, shape)
        case 2:
            found = np.where(rng.random(shape) < 0.4, ABSENT, found)
        case 3:
            found = np.full(shape, ABSENT)
        case 4:
            found = np.exp(rng.uniform(-88, 88, shape)).astype(np.float32)
    return found


def settings(rng: np.random.Generator) -> RuleSettings:
    """Let most rules fire at once, and some not at all."""
    rules = {}
    for rule in SHIPPED:
        low = {"limit": float(rng.choice([0, 1e-30, 0.01])), "armed": 2, "for_rows": 1}
        rules[rule] = {"on": False} if rng.random() < 0.1 else low
    return RuleSettings.parse({"rules": rules if rng.random() < 0.8 else {}})


def story(seed: int) -> list[RunRows]:
    rng = np.random.default_rng(seed)
    found, step, attempt, by, notes = [], 0, 0, settings(rng), ()
    for seq in range(25):
        layers = TABLES[rng.choice(3, p=(0.7, 0.2, 0.1))]
        metrics = [name for name in METRICS if rng.random() < 0.8]
        scalars = [name for name in SCALARS if rng.random() < 0.8] or ["loss"]
        new = rng.random() < 0.05
        attempt += new
        step = max(0, step + int(rng.choice([1, 1, 1, 2, -20, 2**40])))
        steps = tuple(range(step, step + int(rng.integers(1, 5))))
        step = steps[-1]
        if rng.random() < 0.1:
            by = settings(rng)
        if rng.random() < 0.1:
            notes = (*notes, Annotation(len(notes) + 1, step + 1, 3, "", "", 0.0))
        values = numbers(rng, (len(metrics), len(steps), len(layers)))
        of_run = numbers(rng, (len(scalars), len(steps)))
        if "skipped_steps" in scalars:
            of_run[scalars.index("skipped_steps")] = seq // 8
        batch = Batch(
            "w", seq, LayerTable.of_names(layers).hash, steps, tuple(metrics), values,
            tuple(scalars), of_run,
        )  # fmt: skip
        found.append(RunRows("r", batch, layers, attempt, new, by, notes))
    return found


@pytest.mark.parametrize("seeds", [range(30), range(30, 60)])
def test_whoever_goes_on_from_stored_bytes_judges_hostile_rows_alike(seeds):
    for seed in seeds:
        kept, stored = RunRules(None), None
        for rows in story(seed):
            told = kept.advance(rows)
            again = RunRules(stored)
            assert again.advance(rows) == told
            stored = again.dump()
            assert stored == kept.dump()
            assert again.pulse() == kept.pulse()
            onset.order(stored, rows.layers)
            numbers_of = [n for e in told for n in (e.value, e.limit) if n is not None]
            assert all(map(math.isfinite, numbers_of))  # JSON has no other


def judged(*given: dict[str, float], **scalars: list[float]) -> list[Event]:
    """Return the events of rows of one layer, by metric, after rules that fire at once."""
    names = tuple(given[0])
    values = np.array([[[row[name]] for row in given] for name in names], np.float32)
    steps, of_run = tuple(range(len(given))), np.array(list(scalars.values()), np.float32)
    hash_ = LayerTable.of_names(("h",)).hash
    batch = Batch("w", 0, hash_, steps, names, values, tuple(scalars), of_run)
    by = RuleSettings.parse({"rules": {"breach_far": {"limit": 1, "armed": 0, "for_rows": 1}}})
    return RunRules(None).advance(RunRows("r", batch, ("h",), 0, False, by))


def test_a_ratio_beyond_the_float_range_is_an_event_without_a_value():
    rows = [{"sigma": 3e38, "threshold": 1e-38}] * 60
    loss = [1.0] * 30 + [100.0] * 30
    (event,) = [e for e in judged(*rows, loss=loss) if e.rule == "breach_far"]
    assert event.value is None
    assert "infinite times its threshold" in event.message


def test_norms_at_the_end_of_the_float_range_beside_a_broken_loss_are_compared():
    """A layer that began at zero has a floor, which is added to its norm."""
    values = np.ones((3, 3, 4), np.float32)
    values[0, :, 0] = 0
    values[1] = 3.4e38
    hash_ = LayerTable.of_names(("a", "b", "c", "d")).hash
    loss = np.array([[1.0, 1.0, np.nan]], np.float32)
    metrics, rules = ("sigma", "frobenius", "grad_norm"), RunRules(None)
    for step in range(3):
        one = values[:, step : step + 1]
        batch = Batch("w", step, hash_, (step,), metrics, one, ("loss",), loss[:, step : step + 1])
        assert not rules.advance(RunRows("r", batch, ("a", "b", "c", "d"), 0, False))
