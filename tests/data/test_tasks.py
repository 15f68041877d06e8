"""Tasks: records to samples, for each task and language."""

import numpy as np
import pytest

from jaxfusion.config.run import DataConfig
from jaxfusion.data.messages import Masked, Sample, answer, ask
from jaxfusion.data.tasks import samples_of
from jaxfusion.data.visits import visit
from jaxfusion.errors import RecordError, UserError

SCENE = {
    "image_id": np.int64(7),
    "caption_en": b"a large red 3 at the top left and a small blue 5 at the bottom right",
    "caption_zh": "左上角有一个大的红色的3".encode(),
    "questions_en": [b"How many digits are there?", b"What is the sum of the digits?"],
    "answers_en": [b"2", b"8"],
    "questions_zh": ["图中有几个数字？".encode()],
    "answers_zh": [b"2"],
}
REVIEW = {"image_id": np.int64(3), "text": "这家餐厅的菜不好吃".encode(), "label": np.int64(0)}
LABELS = ["负面评论", "正面评论"]
PIXELS = np.zeros((2, 2, 3), np.uint8)


def test_captions_in_every_language_asked_for():
    samples = samples_of(SCENE, DataConfig(task="caption", languages=("en", "zh")), [PIXELS], [])
    assert [sample.group for sample in samples] == ["en", "zh"]
    assert samples[0].reference == SCENE["caption_en"].decode()
    assert samples[1].prompt == ""
    assert len(samples[0].messages[0].images) == 1


def test_each_question_is_a_sample_with_its_own_picture():
    samples = samples_of(SCENE, DataConfig(task="question_answer"), [PIXELS], [])
    assert [(s.prompt, s.reference) for s in samples] == [
        ("How many digits are there?", "2"),
        ("What is the sum of the digits?", "8"),
    ]
    assert all(len(sample.messages[0].images) == 1 for sample in samples)
    assert len({sample.id for sample in samples}) == 2


def test_several_captions_and_answers_are_one_sample():
    several = {"caption_en": [b"a cat", b"a small cat"], "answers_en": [["two", "2", "2"], np.array([b"8"], object)]}
    (caption,) = samples_of(SCENE | several, DataConfig(task="caption"), [PIXELS], [])
    assert (caption.reference, caption.references) == ("a cat", ("a cat", "a small cat"))
    first, second = samples_of(SCENE | several, DataConfig(task="question_answer"), [PIXELS], [])
    assert (first.reference, first.references) == ("2", ("two", "2", "2"))
    assert (second.reference, second.references, second.answers) == ("8", ("8",), ())
    with pytest.raises(UserError, match=r"^record 7 of digit_scenes: nothing is in 'caption_en'"):
        samples_of(SCENE | {"caption_en": []}, DataConfig(task="caption"), [PIXELS], [])


def test_a_visit_learns_one_of_the_answers_as_often_as_it_was_given():
    sample = Sample("1", "en", (ask("q"), answer("a")), answers=("a", "b", "a", "a"))
    rng = np.random.default_rng(0)
    learned = [visit([sample], rng).messages for _ in range(400)]
    assert {messages[0] for messages in learned} == {ask("q")}
    assert 60 < sum(messages[1] == answer("b") for messages in learned) < 140
    single = Sample("1", "en", (ask("q"), answer("a")))
    assert visit([single], rng) == single


def test_a_question_with_choices_is_asked_with_letters_and_answered_by_one():
    record = {"origin": "x.jsonl:3", "question": "Which?", "choices": ["red", "green", "blue"], "answer": 2}
    (sample,) = samples_of(record, DataConfig(task="question_answer"), None, [])
    assert sample.prompt == "Which?\nA. red\nB. green\nC. blue" and sample.references == ("C",)
    assert sample.choices == ("red", "green", "blue")
    (said,) = samples_of(record | {"answer": ["green"]}, DataConfig(task="question_answer"), None, [])
    assert said.reference == "B"
    several = {"questions_en": ["a?", "b?"], "options": [["1", "2"], ["3", "4", "5"]], "answers": ["B", 0]}
    samples = samples_of({"origin": "x"} | several, DataConfig(task="question_answer"), None, [])
    assert [(s.prompt, s.reference) for s in samples] == [("a?\nA. 1\nB. 2", "B"), ("b?\nA. 3\nB. 4\nC. 5", "A")]
    for_all = {"origin": "x", "questions": ["a?", "b?"], "choices": ["no", "yes"], "answers": [1, "no"]}
    samples = samples_of(for_all, DataConfig(task="question_answer"), None, [])
    assert [(s.prompt, s.reference) for s in samples] == [("a?\nA. no\nB. yes", "B"), ("b?\nA. no\nB. yes", "A")]
    (free,) = samples_of(record | {"choices": [], "answer": "red"}, DataConfig(task="question_answer"), None, [])
    assert (free.prompt, free.reference, free.choices) == ("Which?", "red", ())
    for wrong, message in (
        ({"answer": 3}, r"'answer': 3 is no place of 3 choices"),
        ({"answer": "pink"}, r"'answer': 'pink' is none of the 3 choices"),
        ({"choices": "red"}, r"'choices' is 'red' and should be a list of choices"),
        ({"choices": ["red"]}, r"'answer': there are 1 choices"),
        ({"choices": {"red": 1}}, r"'choices' is .* and should be a list of choices"),
        ({"choices": ["red", " "]}, r"'choices' is empty"),
        ({"choices": [["red", "green"], ["blue", "red"]]}, r"1 questions and choices to 2; give as many"),
    ):
        with pytest.raises(RecordError, match=rf"^x\.jsonl:3: {message}"):
            samples_of(record | wrong, DataConfig(task="question_answer"), None, [])


@pytest.mark.parametrize(
    "names", [("document", "summary"), ("article", "highlights"), ("text", "summaries"), ("document_en", "summary_en")]
)
def test_summaries_of_documents_by_any_of_their_names(names):
    record = {"origin": "x.jsonl:1", names[0]: "a long text", names[1]: ["short", "brief"]}
    (sample,) = samples_of(record, DataConfig(task="summarize"), None, [])
    assert (sample.prompt, sample.references) == ("a long text", ("short", "brief"))
    assert not sample.messages[0].images
    (shown,) = samples_of(record, DataConfig(task="summarize"), [PIXELS], [])
    assert len(shown.messages[0].images) == 1


def test_a_prompt_puts_the_request_in_words():
    def prompt(record, **settings):
        samples = samples_of(record, DataConfig(**settings), [PIXELS], LABELS)
        assert all(len(sample.messages[0].images) == 1 for sample in samples)
        return [sample.prompt for sample in samples]

    assert prompt(SCENE, prompt="Describe the picture.") == ["Describe the picture."]
    asked = prompt(SCENE, task="question_answer", prompt="{question} Answer briefly.")
    assert asked[0] == "How many digits are there? Answer briefly."
    assert prompt(REVIEW, task="classify", prompt="好吗？{text}") == ["好吗？这家餐厅的菜不好吃"]
    record = {"origin": "x", "document": "{document}", "summary": "a"}
    assert prompt(record, task="summarize", prompt="Sum up: {document}") == ["Sum up: {document}"]


def test_dialogues_in_a_language_and_by_columns_as_tfds_keeps_them():
    columns = {"from": [b"human", b"gpt"], "value": ["几？".encode(), b"3"]}
    turns = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "4"}]
    record = {"image_id": np.int64(7), "conversations_zh": columns, "conversations_en": turns}
    english, chinese = samples_of(record, DataConfig(task="dialogue", languages=("en", "zh")), [PIXELS], [])
    assert (english.prompt, english.reference, english.group) == ("Which?", "4", "en")
    assert (chinese.prompt, chinese.reference, chinese.group) == ("几？", "3", "zh")
    for broken in ({"from": ["human"], "value": []}, {"from": [b"human"], "value": [b"\xff"]}, {}):
        with pytest.raises(RecordError, match=r"^record 7 of digit_scenes: "):
            samples_of(record | {"conversations_en": broken}, DataConfig(task="dialogue"), [PIXELS], [])


def test_texts_in_a_language():
    record = {"origin": "x", "text_en": "one", "text_zh": "一"}
    samples = samples_of(record, DataConfig(task="text", languages=("zh", "en")), None, [])
    assert [(s.group, s.reference) for s in samples] == [("zh", "一"), ("en", "one")]


def test_fill_hides_only_what_the_picture_tells():
    (sample,) = samples_of(SCENE, DataConfig(task="fill"), [PIXELS], [])
    hidden = [part.text.strip() for part in sample.messages[0].parts if isinstance(part, Masked)]
    assert hidden == ["large", "red", "3", "small", "blue", "5"]
    assert sample.prompt == sample.reference
    (sample,) = samples_of(SCENE, DataConfig(task="fill", languages=("zh",)), [PIXELS], [])
    assert [part.text for part in sample.messages[0].parts if isinstance(part, Masked)] == ["大", "红色", "3"]


def test_reviews_have_a_label_and_can_lose_their_text():
    config = DataConfig(task="classify", languages=("zh",))
    (sample,) = samples_of(REVIEW, config, [PIXELS], LABELS)
    assert (sample.prompt, sample.reference, sample.label) == ("这家餐厅的菜不好吃", "负面评论", 0)
    (blind,) = samples_of(REVIEW, config, None, LABELS)
    assert not blind.messages[0].images
    (mute,) = samples_of(REVIEW, DataConfig(task="classify", modalities=("image",)), [PIXELS], LABELS)
    assert mute.prompt == ""


def test_pictures_can_be_classified_without_text():
    config = DataConfig(task="classify", label="count")
    (sample,) = samples_of(SCENE | {"count": np.int64(1)}, config, [PIXELS], ["1", "2", "3", "4"])
    assert (sample.prompt, sample.reference, sample.label) == ("", "2", 1)


def test_segmentation_and_stop_words_are_options_and_keep_negations():
    settings = dict(task="classify", languages=("zh",), segment_words=True)
    (words,) = samples_of(REVIEW, DataConfig(**settings), [PIXELS], LABELS)
    assert words.prompt.replace(" ", "") == "这家餐厅的菜不好吃"
    assert " " in words.prompt
    (fewer,) = samples_of(REVIEW, DataConfig(**settings, remove_stop_words=True), [PIXELS], LABELS)
    assert "的" not in fewer.prompt.split()
    assert "不" in fewer.prompt


def test_a_field_that_is_missing_is_named_with_those_there_are():
    with pytest.raises(
        UserError, match=r"^record 7 of digit_scenes: there is no field 'label'.* its fields are image_id, caption_en"
    ):
        samples_of(SCENE, DataConfig(task="classify"), [PIXELS], LABELS)


TURN = {"from": ["a"], "value": 1}
HALF = "a \ud83d b"  # of a surrogate pair
ODD = [
    None,
    True,
    5,
    1e400,
    b"\xff",
    "",
    " ",
    HALF,
    [HALF],
    [{"from": "gpt", "value": HALF}],
    [],
    {},
    [None],
    [[]],
    [{}],
    [["a"], 3],
    {"from": 1},
    [TURN],
]
WHOLE = {
    "caption": {"caption": "a"},
    "question_answer": {"questions": ["a?", "b?"], "answers": [["a"], "b"]},
    "choices": {"question": "a?", "choices": ["a", "b"], "answer": "B"},
    "summarize": {"document": "a", "summary": ["b", "c"]},
    "classify": {"label": 1, "text": "a"},
    "dialogue": {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "a"}], "messages": None},
    "text": {"text": "a"},
}


@pytest.mark.parametrize("task", list(WHOLE))
def test_whatever_stands_in_a_field_is_a_sample_or_refused_by_its_record(task):
    config, refused = DataConfig(task="question_answer" if task == "choices" else task), 0
    whole = {"origin": "x.json:1", "images": ["x.png"]} | WHOLE[task]
    assert samples_of(whole, config, [PIXELS], LABELS)
    for name in WHOLE[task]:
        for odd in ODD:
            try:
                samples = samples_of(whole | {name: odd}, config, [PIXELS], LABELS)
                assert all(isinstance(text, str) and text.strip() for sample in samples for text in sample.references)
                assert all(message.text.encode() is not None for sample in samples for message in sample.messages)
            except RecordError as error:
                assert str(error).startswith("x.json:1: ")
                refused += 1
    assert refused > len(ODD) / 2


def test_an_answer_that_nobody_asked_for_is_refused():
    say = {"from": "gpt", "value": "a"}
    for turns in ([say], [{"from": "system", "value": "s"}, say], [say, {"from": "human", "value": "?"}]):
        with pytest.raises(RecordError, match=r"^x\.json:1: nobody asks before the last answer"):
            record = {"origin": "x.json:1", "images": ["x.png"], "conversations": turns}
            samples_of(record, DataConfig(task="dialogue"), [PIXELS], [])
    turns = [say, {"from": "human", "value": "?"}, say]  # as ShareGPT's often begin
    (sample,) = samples_of({"origin": "x", "conversations": turns}, DataConfig(task="dialogue"), None, [])
    assert [message.role for message in sample.messages] == ["assistant", "user", "assistant"]


def test_an_open_question_stands_among_choices():
    config = DataConfig(task="question_answer")
    record = {"origin": "x", "questions": ["a?", "b?"], "answers": ["x", "blue"]}
    for nothing in ([], None):
        first, second = samples_of(record | {"choices": [["x", "y"], nothing]}, config, None, [])
        assert (first.reference, second.reference, second.choices) == ("A", "blue", ())
    free = samples_of(record | {"choices": [None, []]}, config, None, [])
    assert [(s.prompt, s.reference) for s in free] == [("a?", "x"), ("b?", "blue")]


def test_choices_may_have_names_in_the_record():
    record = {"origin": "x", "question": "a?", "choices": ["red", "green"], "choice_labels": ["1", "2"], "answer": "1"}
    (sample,) = samples_of(record, DataConfig(task="question_answer"), None, [])
    assert sample.reference == "A"


def test_a_text_of_nothing_beside_a_picture_is_none():
    record = {"origin": "x", "text": None, "images": ["a.png"], "label": 0}
    (sample,) = samples_of(record, DataConfig(task="classify"), [PIXELS], LABELS)
    assert sample.prompt == "" and len(sample.messages[0].images) == 1
    with pytest.raises(RecordError, match="neither picture nor text"):
        samples_of(record | {"images": []}, DataConfig(task="classify"), [], LABELS)
