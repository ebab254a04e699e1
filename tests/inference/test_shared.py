"""One model for several threads: what it answers, how often it encodes, who comes next, what it forgets."""

import threading
import time

import numpy as np
import pytest
import torch

from sam_med2d.inference.models import SMALL, open_model
from sam_med2d.inference.shared import SharedModel, Turns
from segment_anything import SamPredictor


@pytest.fixture(scope="module")
def model():
    return open_model(SMALL, device="cpu")


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)


def answer(model, seed: int) -> np.ndarray:
    predictor = SamPredictor(model)
    predictor.set_image(picture(seed))
    return predictor.predict(box=[10, 10, 50, 40], return_logits=True).masks


def test_it_answers_as_the_model_does_and_encodes_each_picture_once(model):
    shared = SharedModel(model)
    for seed in (0, 1):
        assert np.array_equal(answer(shared, seed), answer(model, seed))
    passes = shared.encoded
    for seed in (0, 1):  # other predictors, the same pictures and crops
        assert np.array_equal(answer(shared, seed), answer(model, seed))
    assert shared.encoded == passes > 0


def test_the_oldest_is_forgotten_where_there_is_no_room(model):
    one = 4 * 256 * (model.image_size // 16) ** 2
    shared = SharedModel(model, kept_bytes=2 * one)
    frames = [torch.full((1, 3, model.image_size, model.image_size), value, dtype=torch.uint8) for value in (1, 2, 3)]
    with torch.no_grad():
        for frame in (*frames, frames[2], frames[1]):
            shared.encode(frame)
        assert shared.encoded == 3
        shared.encode(frames[0])
    assert shared.encoded == 4


def test_many_threads_get_what_each_would_get_alone(model):
    shared, alone, found = SharedModel(model), [answer(model, seed) for seed in range(4)], {}

    def work(number: int) -> None:
        found[number] = answer(shared, number % 4)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[number], alone[number % 4]) for number in range(8))


def test_who_asked_first_comes_first():
    turns, order, threads = Turns(), [], []

    def work(number: int) -> None:
        with turns:
            order.append(number)

    with turns:
        for number in range(5):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            while turns._next < number + 2:  # it waits in line
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_turn_ends_with_an_error_too():
    turns = Turns()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), turns:
            1 / 0  # noqa: B018
