"""Several processes learn what one would: gradients, weights, averages, losses and validation, in every round."""

import subprocess

import pytest
import torch
from torch import Tensor

from sam_med2d.distributed import Processes
from tests.training import parallel_cases
from tests.training.parallel_cases import CASES, run, start

WAIT = 900  # seconds, for what takes ten on a machine with nothing else to do


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes ends with, half of every step each: of all cases."""
    folder = tmp_path_factory.mktemp("shares")
    started = start([parallel_cases.__file__, folder], 2, stderr=subprocess.PIPE, text=True)
    for process in started:
        said = process.communicate(timeout=WAIT)[1]
        assert process.returncode == 0, said[-3000:]
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_does(name: str, shares: list[dict[str, dict[str, Tensor]]]) -> None:
    """Eight steps of four rounds, in some of which a process has no object, or nobody has."""
    case = CASES[name]
    alone = run(case, Processes())
    tolerance = 1e-9 if case.double else 1e-5
    reached = [sum(key.startswith(f"gradient {turn} ") for key in alone) for turn in range(2)]
    assert min(reached) > 50 and (
        reached[0] > reached[1] or case.tune == "decoder"
    )  # later rounds do not reach the encoder
    for share in shares:
        assert share[name].keys() == alone.keys()  # the same rounds reach the same parameters
        for key, tensor in alone.items():
            assert tensor.dtype == share[name][key].dtype
            limit = 1e-5 if key.startswith("step") else tolerance  # scalars are of float32
            torch.testing.assert_close(share[name][key], tensor, rtol=limit, atol=limit, msg=lambda m: f"{key}: {m}")
    for key, tensor in shares[0][name].items():
        assert torch.equal(tensor, shares[1][name][key]), key
