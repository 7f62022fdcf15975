"""The short form of `make chaos`: whatever is killed with -9, nothing acknowledged is lost."""

import os

import pytest
from kill_rounds import play

ROUNDS = 5


@pytest.mark.timeout(240)
def test_kill_9_of_anybody_in_a_bad_network_loses_tears_and_doubles_nothing(engine, tmp_path):
    seed = int.from_bytes(os.urandom(3), "little")
    try:
        *lines, _, last = play(engine, ROUNDS, tmp_path, seed)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}") from error
    assert len(lines) == ROUNDS
    assert all("killed" in line for line in lines)
    assert last == f"{ROUNDS} rounds: nothing acknowledged was lost, torn or doubled"
