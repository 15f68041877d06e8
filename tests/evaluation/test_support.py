"""Solved examples before a question: which they are, against brute force, and never the question itself."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxfusion
from jaxfusion.config import Config, from_dict
from jaxfusion.data.loader import Reader
from jaxfusion.data.messages import Image, Message, Sample, answer, ask
from jaxfusion.data.sources.mixture import Mixture
from jaxfusion.errors import UserError
from jaxfusion.evaluation.evaluate import evaluate
from jaxfusion.evaluation.support import candidates, image_features, most_similar, with_support
from jaxfusion.pretrained.load import init_tower
from tests.evaluation.test_evaluate import experiment

DECODER = {"kind": "transformer", "num_layers": 1, "num_heads": 2}


def picture(rng):
    return rng.integers(0, 256, (8, 8, 3), np.uint8)


def sample(name, pixels, group="en", text="what?"):
    return Sample(name, group, (ask(Image(pixels), text), answer(f"a {name}")))


def made(number=12, seed=0, group="en"):
    rng = np.random.default_rng(seed)
    return [sample(f"{group}{seed}-{n}", picture(rng), group) for n in range(number)]


def setting(**settings):
    config, model, params = experiment("question_answer", DECODER)
    return replace(config, evaluate=replace(config.evaluate, **settings)), model, params


def names(asked):
    """Of the examples, by their answers."""
    return [m.text.removeprefix("a ") for m in asked.messages[1:-2:2]]


def test_random_examples_are_the_same_for_all_and_make_up_the_messages():
    config, model, params = setting()
    questions, pool = made(3, seed=1), made(6)
    for shots in (0, 1, 4):
        asked = with_support(config, model, params, questions, {"en": pool}, [shots])[shots]
        for question, given in zip(questions, asked, strict=True):
            expected = []
            for other in pool[:shots]:
                expected += [other.messages[0], Message("assistant", other.messages[1].parts, learned=False)]
            assert given.messages == (*expected, *question.messages)
            assert replace(given, messages=question.messages) == question


def test_a_question_is_never_among_its_own_examples_by_whatever_name():
    for support in ("random", "rices"):
        config, model, params = setting(support=support)
        pool = made(4)
        twins = [replace(other, id=f"other name {n}") for n, other in enumerate(pool)]
        asked = with_support(config, model, params, twins, {"en": pool}, [3])[3]
        for number, given in enumerate(asked):
            assert sorted(names(given)) == sorted(other.id for n, other in enumerate(pool) if n != number)
    with pytest.raises(UserError, match=r"shots: 4 examples are wanted, and there are 3 to choose from"):
        with_support(config, model, params, twins, {"en": pool}, [4])[4]


def test_of_texts_alone_the_same_question_is_the_same():
    config, model, params = setting()
    pool = [Sample(str(n), "en", (ask(f"text {n}"), answer(f"a {n}"))) for n in range(4)]
    (given,) = with_support(config, model, params, [replace(pool[0], id="9")], {"en": pool}, [2])[2]
    assert names(given) == ["1", "2"]
    config, model, params = setting(support="rices")
    with pytest.raises(UserError, match=r"support: sample 0 has no picture to compare; use 'random'"):
        with_support(config, model, params, pool[:1], {"en": pool}, [2])[2]


def test_rices_is_brute_force_in_numpy():
    config, model, params = setting(support="rices", batch_size=5)
    questions, pool = made(7, seed=1), made(12)
    asked = with_support(config, model, params, questions, {"en": pool}, [4])[4]
    look = lambda s: np.asarray(  # noqa: E731
        jaxfusion.see(
            jaxfusion.models.tower.Tower(model.config.vision), params, s.messages[0].images[0].value[None, None]
        ),
        np.float64,
    ).reshape(-1, 4)
    vectors = [look(s).mean(0) for s in pool]
    for question, given in zip(questions, asked, strict=True):
        own = look(question).mean(0)
        cosines = [own @ v / np.sqrt((own @ own) * (v @ v)) for v in vectors]
        best = sorted(range(len(pool)), key=lambda n: cosines[n])[-4:]  # the most similar last
        assert names(given) == [pool[n].id for n in best]


def test_each_group_has_examples_of_its_own():
    for support in ("random", "rices"):
        config, model, params = setting(support=support)
        questions = [*made(2, 1, "en"), *made(2, 1, "zh"), *made(1, 2, "en")]
        asked = with_support(config, model, params, questions, {g: made(5, 0, g) for g in ("en", "zh")}, [2])[2]
        assert [given.id for given in asked] == [question.id for question in questions]
        assert all(name.startswith(given.group) for given in asked for name in names(given))


def test_a_named_tower_sees_pictures_in_its_own_way(monkeypatch):
    config, model, params = setting(support="rices", rices_vision="org/tower")
    vision = from_dict(Config, {"model": {"vision": {**vars(model.config.vision), "kind": "vgg"}}}).model.vision
    tower = jaxfusion.models.tower.Tower(replace(vision, image_size=6), pixels=lambda picture: 255 - picture[:6, :6])
    weights = init_tower(tower, jax.random.key(5))
    monkeypatch.setattr("jaxfusion.pretrained.load.load", lambda name: (tower, weights))
    (question,) = made(1)
    (vector,) = image_features(config, model, params)([question])
    seen = 255 - question.messages[0].images[0].value[:6, :6]
    expected = np.asarray(jaxfusion.see(tower, weights, seen[None, None]), np.float64).reshape(-1, 4).mean(0)
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-6)
    monkeypatch.setattr("jaxfusion.pretrained.load.load", lambda name: (model, params))
    with pytest.raises(UserError, match=r"rices_vision: org/tower is more than a vision tower"):
        image_features(config, model, params)


def test_ties_go_to_the_first_in_the_pool():
    pool, questions = made(5), made(1, seed=1)
    same = lambda samples: np.ones((len(samples), 2))  # noqa: E731
    (found,) = most_similar(questions, pool, 3, same)
    assert found == pool[:3]


def test_candidates_are_one_sample_a_record_and_the_main_data_s():
    class Records(list):
        def __getitem__(self, place):
            return {
                "image_id": place,
                "image": np.full((8, 8, 3), place, np.uint8),
                "questions": ["one?", "two?"],
                "answers": [f"a {place}", f"b {place}"],
            }

    config, model, _ = setting()
    reader = Reader(config.data, model.config, ())
    found = candidates(Records([None] * 40), reader, 10)["en"]
    assert len({s.id.split("-")[0] for s in found}) == len(found) == 10
    assert {s.id.split("-")[1] for s in found} == {"0", "1"}  # either question
    everything = candidates(Records([None] * 40), reader, 0)["en"]
    assert [s.id for s in everything[:10]] == [s.id for s in found] and len(everything) == 40
    mixed = Mixture([Records([None] * 40), Records([None] * 900)], np.array([0.5, 0.5]))
    assert [s.id for s in candidates(mixed, reader, 10)["en"]] == [s.id for s in found]


def test_examples_carry_no_loss():
    config, model, params = setting()
    questions = made(3, seed=1)
    asked = with_support(config, model, params, questions, {"en": made(4)}, [2])[2]
    result = evaluate(config, model, params, asked, [])
    alone = evaluate(config, model, params, questions, [])
    assert result.samples == asked and result.references == alone.references
    assert result.metrics["test_loss"] != alone.metrics["test_loss"]  # the examples are read
    lengths = [len(model.tokenizer.encode(s.reference)) + 1 for s in questions]
    from jaxfusion.data.tokenise import Layout, tokenise

    weights = [tokenise(s, model.tokenizer, Layout.of(model.config)).loss_weights.sum() for s in asked]
    assert weights == lengths


@pytest.mark.parametrize("support", ["random", "rices"])
def test_fewer_examples_are_among_more_and_pictures_are_looked_at_once(support, monkeypatch):
    config, model, params = setting(support=support)
    looked = []
    monkeypatch.setattr(
        "jaxfusion.evaluation.support.image_features",
        lambda *arguments: looked.append(1) or image_features(*arguments),
    )
    found = with_support(config, model, params, made(3, seed=1), {"en": made(8)}, (0, 2, 5))
    assert list(found) == [0, 2, 5] and len(looked) == (support == "rices")
    for none, two, five in zip(*found.values(), strict=True):
        assert names(none) == [] and len(names(five)) == 5
        assert names(two) == (names(five)[-2:] if support == "rices" else names(five)[:2])
