"""Judges on this machine, as tiny random models: what they say is noise, how it is asked and kept is not."""

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification

from mogu.errors import ConfigError, ModelError
from mogu.judge.local import ClassifierJudge, LanguageModelJudge, is_classifier
from mogu.judge.models import JudgeSettings, hash_prompt, open_judge
from mogu.judge.rubrics import REFUSAL, Rubric

ROWS = [{"instruction": f"w{n} w{n + 1}", "response": " ".join(f"w{n + k}" for k in range(n))} for n in range(4, 9)]


def save(folder, model):
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def classifier(model_type, **changes):
    torch.manual_seed(3)
    config = tiny.config(model_type, id2label={0: "fine", 1: "Harmful"}, **changes)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("lm"), tiny.base("llama"))


@pytest.fixture(scope="module", params=["bert", "llama"])
def classifier_folder(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp(request.param), classifier(request.param))


def test_a_language_model_answers_greedily_and_in_order(language_model):
    words = Rubric("words", "w3", "{instruction} w5 {response}", labels=tuple(f"w{n}" for n in range(4, 97)))
    told = {}
    judge = LanguageModelJudge(language_model, words, batch_size=2, max_new_tokens=1)
    found = judge.judge(ROWS, told.__setitem__)
    assert [told[index] for index in range(len(ROWS))] == found
    model, tokenizer = tiny.base("llama"), tiny.tokenizer()
    for row, one in zip(ROWS, found, strict=True):
        ids = tokenizer(f"w3 {row['instruction']} w5 {row['response']}", return_tensors="pt")["input_ids"]
        best = tokenizer.decode(model(ids).logits[0, -1].argmax(), skip_special_tokens=True)
        assert (one.answer, one.label) == (best, best or None)
        assert one.prompt_hash == judge.prompt_hash(row)


def test_its_prompt_is_one_user_turn(language_model):
    judge = LanguageModelJudge(language_model, REFUSAL)
    system, user = (turn["content"] for turn in REFUSAL.messages("a", "b"))
    expected = [{"role": "user", "content": f"{system}\n\n{user}"}]
    assert judge.prompt_hash({"instruction": "a", "response": "b"}) == hash_prompt(expected)


def test_a_classifier_scores_each_row_as_alone(classifier_folder):
    judge = ClassifierJudge(classifier_folder, batch_size=3)
    assert judge.labels == ["fine", "Harmful"]
    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()
    tokenizer = tiny.tokenizer()
    for row, one in zip(ROWS, judge.judge(ROWS), strict=True):
        pair = tokenizer(row["instruction"], row["response"], return_tensors="pt")
        shares = model(**pair).logits[0].softmax(-1)
        assert one.score == pytest.approx(shares[1].item(), abs=1e-5)
        assert one.label == judge.labels[int(shares.argmax())]
        assert f"Harmful: {one.score:.4f}" in one.answer


@pytest.mark.parametrize("wanted", ["fine", "0", 0])
def test_another_label_can_be_scored(classifier_folder, wanted):
    harmful = ClassifierJudge(classifier_folder).judge(ROWS[:1])[0]
    fine = ClassifierJudge(classifier_folder, wanted).judge(ROWS[:1])[0]
    assert harmful.score + fine.score == pytest.approx(1.0)
    assert (harmful.label, fine.judge) == (fine.label, f"{classifier_folder}:fine")


def test_a_long_response_is_cut_to_what_the_classifier_takes(classifier_folder):
    (found,) = ClassifierJudge(classifier_folder).judge([{"instruction": "w4", "response": "w5 " * 500}])
    assert found.parsed


def test_an_unknown_label_names_the_known(classifier_folder):
    with pytest.raises(ConfigError, match=r"no label 'toxic'; .* --score-label: 0 fine, 1 Harmful"):
        ClassifierJudge(classifier_folder, "toxic")


def test_a_model_of_one_output_is_no_classifier(tmp_path):
    torch.manual_seed(3)
    one = AutoModelForSequenceClassification.from_config(tiny.config("bert", num_labels=1))
    with pytest.raises(ModelError, match="has one output"):
        ClassifierJudge(save(tmp_path / "one", one))


def test_a_language_model_is_no_classifier(language_model):
    with pytest.raises(ModelError, match="has no classification head"):
        ClassifierJudge(language_model)


def test_the_configuration_says_which_kind_a_model_is(language_model, classifier_folder):
    assert not is_classifier(language_model)
    assert is_classifier(classifier_folder)
    assert not is_classifier("smollm2")
    assert isinstance(open_judge(JudgeSettings(classifier_folder)), ClassifierJudge)
    assert open_judge(JudgeSettings(language_model)).name == f"{language_model}#refusal"


@pytest.mark.parametrize(
    ("setting", "value", "what"),
    [("rubric", "refusal", "a classifier"), ("quantize", "4bit", "a classifier"), ("model", "m", "a model on this")],
)
def test_settings_that_mean_nothing_are_refused(classifier_folder, setting, value, what):
    with pytest.raises(ConfigError, match=f"does not go with {what}"):
        open_judge(JudgeSettings(classifier_folder, **{setting: value}))


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        open_judge(JudgeSettings(str(tmp_path / "none")))
