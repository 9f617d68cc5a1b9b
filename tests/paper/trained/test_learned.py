"""Networks are kept by everything that they are a function of, and read again bit for bit."""

from dataclasses import replace

import pytest
import torch

from refimpl.paper.trained import learned as module
from refimpl.paper.trained import small_training
from refimpl.paper.trained.learned import Lesson, learned, learned_on_the_way, lesson
from refimpl.paper.trained.small_training import pictured, trained_model
from tests.paper.trained.test_small_training import RUN, weights


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setattr(small_training, "PICTURES", 16)


def test_a_lesson_of_a_runs_pictures_is_that_run(tmp_path):
    model, examples = pictured(RUN)
    assert torch.equal(
        weights(learned(model, lesson(RUN, examples), tmp_path)), weights(trained_model(RUN, tmp_path))
    )


def test_what_was_learned_is_read_again(tmp_path, monkeypatch):
    first, examples = pictured(RUN)
    first = learned(first, lesson(RUN, examples), tmp_path)
    monkeypatch.setattr(module, "fit", lambda *_: pytest.fail("trained again"))
    again = learned(pictured(RUN)[0], lesson(RUN, examples), tmp_path)
    assert torch.equal(weights(first), weights(again))
    assert not any(parameter.requires_grad for parameter in again.unet.parameters())


def test_weights_on_the_way_are_those_of_the_longer_training(tmp_path):
    def at(milestones, steps, folder):
        model, examples = pictured(RUN)
        taught = lesson(RUN, examples)
        return learned_on_the_way(model, replace(taught, order=taught.order[:steps]), milestones, folder)

    whole, cut, again = at((1, 2, 3), 3, tmp_path), at((1, 2), 2, tmp_path), at((1, 2, 3), 3, tmp_path)
    assert list(whole) == [1, 2, 3]
    for step, each in whole.items():
        for name, value in each.items():
            assert torch.equal(value, again[step][name])
            assert step == 3 or torch.equal(value, cut[step][name])
    assert not torch.equal(whole[1]["out.2.weight"], whole[2]["out.2.weight"])


def test_whatever_changes_the_weights_changes_their_name(tmp_path):
    model, examples = pictured(RUN)
    taught = lesson(RUN, examples)
    other_weights = replace(examples, weights=examples.weights * 2)
    other_pictures = replace(examples, latents=examples.latents + 1)
    rows = examples.conditions
    other_vectors = replace(examples, conditions=replace(rows, vector=rows.vector + 1))
    other_texts = replace(examples, conditions=replace(rows, context=rows.context + 1))
    lessons = [
        taught,
        replace(taught, run=replace(RUN, learning_rate=1e-3)),
        replace(taught, order=taught.order[::-1]),
        Lesson(RUN, (examples, examples), [(1, chosen) for _, chosen in taught.order]),
        *(lesson(RUN, each) for each in (other_weights, other_pictures, other_vectors, other_texts)),
    ]
    names = {module._digest(model, each, (3,)) for each in lessons}
    names |= {module._digest(model, taught, (2, 3))}
    started, _ = pictured(replace(RUN, seed=1))
    names |= {module._digest(started, taught, (3,))}
    assert len(names) == len(lessons) + 2
