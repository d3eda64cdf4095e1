"""Words of captions by name: what each divides, how signatures tell them apart, what is refused."""

import builtins
import sys

import numpy as np
import pytest

from har_jax.errors import UserError
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.metrics.corpus import score_captions
from har_jax.rewards import mix
from har_jax.rewards.cider_d import CiderDReward
from har_jax.text import ptb, words
from har_jax.text.words import PTB, WHITESPACE, find_words, named_in

GERMAN = "Ein großer Hund läuft über die Straße, 3,5 km weit!"
ARABIC = "رجل يركب حصانا، في الحقل"
JAPANESE = "赤いボールが砂の上にあります。"
CUT = "赤い ボール が 砂 の 上 に あり ます 。"

REFERENCES = {1: ["赤い ボール が ある", "ボール が ある"], 2: ["青い 箱", "箱 が 青い"]}


def of_letters(text):
    """A user's words: one for each letter."""
    return [c for c in text if c.isalpha()]


def of_no_list(text):
    return text


def of_spaces(text):
    return ["a b", "c"]


def of_nothing(text):
    return ["a", ""]


def of_errors(text):
    return [text[1000]]


def of_numbers(text):
    return [1, 2]


def test_ptb_is_what_it_was():
    assert find_words("ptb") is PTB
    assert PTB("A man's dog can't run...") == ptb.words("A man's dog can't run...")
    lines = ["plan B.", "The dog"]
    assert PTB.of_lines(lines) == ptb.tokens_of_lines(lines)
    assert (PTB.signature, PTB.mark) == ("ptb", "ptb")


def test_white_space_changes_nothing_else():
    assert find_words("whitespace") is WHITESPACE
    assert WHITESPACE(GERMAN) == GERMAN.split()
    assert WHITESPACE(CUT) == CUT.split(" ")
    assert WHITESPACE(" a\u2028b\nc  \ud800") == ["a", "b", "c", "?"]
    assert WHITESPACE.mark == "words=whitespace"
    assert WHITESPACE("") == [] and WHITESPACE.of_lines(["a b", ""]) == [["a", "b"], []]


def test_icu_knows_scripts_without_spaces():
    pytest.importorskip("icu4py")
    found = find_words("icu")
    assert " ".join(found(GERMAN)) == "ein großer hund läuft über die straße 3,5 km weit"
    assert " ".join(found(ARABIC)) == "رجل يركب حصانا في الحقل"
    assert " ".join(found(JAPANESE)) == "赤い ボール が 砂 の 上 に あり ます"
    assert found("เด็กเล่นบอล") == ["เด็ก", "เล่น", "บอล"]
    assert found("CAFE\u0301 don't \U0001f600 10\u202f000") == ["café", "don't", "10", "000"]
    assert found("") == [] == found(" ?! ")
    assert found.signature.startswith("icu[") and found.mark == f"words={found.signature}"
    assert find_words("icu") is found


def test_without_icu_a_line_says_how_to_get_it(monkeypatch):
    original = builtins.__import__

    def without(name, *rest, **kw):
        if name.startswith("icu4py"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *rest, **kw)

    words._icu.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.startswith("icu4py")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"words=icu needs ICU.*: pip install 'icu4py>=1.2,<2'"):
        find_words("icu")
    monkeypatch.undo()
    words._icu.cache_clear()


def test_a_function_of_ones_own():
    found = find_words(f"{__name__}:of_letters")
    assert found("a 犬!") == ["a", "犬"]
    assert found.name == f"{__name__}:of_letters"
    assert found.signature.startswith(f"{__name__}:of_letters[") and len(found.signature) > 30
    of_letters.signature = "letters-2"
    try:
        assert find_words(f"{__name__}:of_letters").signature == "letters-2"
    finally:
        del of_letters.signature


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("of_no_list", "returned 'a dog', not a list of texts"),
        ("of_numbers", "returned .1, 2., not a list of texts"),
        ("of_spaces", "a word is empty or holds white space"),
        ("of_nothing", "a word is empty or holds white space"),
        ("of_errors", r"raised IndexError: .*test_words.py, line \d+.*, of 'a dog'"),
        ("of_lettres", "did you mean 'of_letters'"),
    ],
)
def test_functions_that_give_no_words(name, message):
    with pytest.raises(UserError, match=message):
        find_words(f"{__name__}:{name}")("a dog")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "whitspace",
            r"unknown words 'whitspace' \(did you mean 'whitespace'\?\); choose from ptb",
        ),
        ("PTB", "did you mean 'ptb'|choose from ptb, whitespace, icu"),
        ("", "unknown words ''"),
        ("no_such_module:f", "words 'no_such_module:f': there is no module 'no_such_module'"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(UserError, match=message):
        find_words(name)


def test_signatures_of_scores_name_their_words():
    written = {1: "ボール が ある", 2: "青い 箱"}
    scores = score_captions(REFERENCES, written, words=WHITESPACE)
    assert (
        scores.signature.endswith("+words=whitespace") and named_in(scores.signature) is WHITESPACE
    )
    assert scores.corpus["CIDEr"] > 0 and scores.corpus["Bleu_2"] > 0.9
    assert scores.words[2] == ["青い", "箱"]
    plain = score_captions({1: ["a dog"], 2: ["a cat"]}, {1: "a dog", 2: "a cat"})
    assert plain.signature.endswith("+words=ptb") and named_in(plain.signature) is PTB
    assert named_in("") is PTB
    with pytest.raises(UserError, match=r"count the words of a function, 'my\.own:f'"):
        named_in("BLEU[n4,closest]+words=my.own:f[12345678]+CLIPScore[w2.5]")


def test_metrics_that_know_english_alone():
    written = {1: "ボール が ある", 2: "青い 箱"}
    scores = score_captions(REFERENCES, written, metrics=["METEOR", "SPICE"], words=WHITESPACE)
    for name in ("METEOR", "SPICE"):
        assert scores.corpus[name] is None
        assert scores.skipped[name] == f"{name} is made for English and PTB words, not whitespace"
    with pytest.raises(UserError, match=r"--metrics=official counts the PTB words.*=whitespace"):
        score_captions(REFERENCES, written, metrics=["official"], words=WHITESPACE)


def counted(how, **more):
    divided = [[how(text) for text in group] for group in REFERENCES.values()]
    return DocumentFrequency.from_references(divided, name="train", **more)


def test_rewards_count_them_and_say_so():
    df = counted(WHITESPACE, words_by="whitespace")
    spec = "cider_d + bleu - bias - bias_balanced - length - repetition"
    reward = mix.build(spec, df, REFERENCES, words=WHITESPACE)
    ids, ended = np.array([1, 2]), np.ones((2, 2), bool)
    _, parts = reward.breakdown(
        ids, [["ボール が ある", "箱 箱 箱 箱"], ["青い 箱", "ボール"]], ended
    )
    for name in ("cider_d", "bleu"):
        assert (parts[name][:, 0] > parts[name][:, 1]).all(), name
    assert parts["repetition"][0].tolist() == [0, np.float32(2 / 3)]
    assert parts["length"][0].tolist() == [0, 0] and parts["length"][1, 1] > 0
    assert reward.signature.count("+words=whitespace") == len(reward.parts)
    assert "+ptb" not in reward.signature
    assert CiderDReward(df, REFERENCES, words=WHITESPACE).signature.endswith("+words=whitespace")


@pytest.mark.parametrize(("by", "asked"), [("ptb", WHITESPACE), ("whitespace", PTB)])
def test_document_frequencies_of_other_words_are_refused(by, asked):
    df = counted(WHITESPACE, words_by=by)
    wanted = (
        f"count the words of {by}, and the reward those of {asked.signature}.*--words={asked.name}"
    )
    with pytest.raises(UserError, match=wanted):
        CiderDReward(df, REFERENCES, words=asked)
    with pytest.raises(UserError, match=wanted):
        mix.build("cider_d", df, REFERENCES, words=asked)


def test_document_frequencies_remember_their_words(tmp_path):
    df = counted(WHITESPACE, words_by="whitespace")
    df.save(tmp_path / "df.npz")
    again = DocumentFrequency.load(tmp_path / "df.npz")
    assert again.words_by == "whitespace" and again.fingerprint == df.fingerprint
    # Of PTB's words a file says nothing, and is the file that it always was.
    plain = counted(PTB)
    plain.save(tmp_path / "plain.npz")
    with np.load(tmp_path / "plain.npz") as file:
        assert "words_by" not in file.files
    assert DocumentFrequency.load(tmp_path / "plain.npz").words_by == "ptb"
