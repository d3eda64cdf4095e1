"""Tokenizers of other families: the ids of transformers, how texts begin and end, and what of it
reaches a captioner."""

import dataclasses
import hashlib
import json
import shutil

import pytest
import transformers

from har_jax.errors import UserError
from har_jax.interchange import llava_processor
from har_jax.loading.parts import read_parts
from har_jax.text.tokenizer import load_tokenizer, train_tokenizer
from tests.test_export import configure
from tests.text.families import FAMILIES, ODD, TEXTS, write


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: make(root / name) for name, make in FAMILIES.items()}


@pytest.fixture
def changed(directories, tmp_path):
    """`changed(family, file={key: value})`: a copy with other values; None takes a key away."""

    def copy(family, **files):
        made = shutil.copytree(directories[family], tmp_path / family, dirs_exist_ok=True)
        for name, values in files.items():
            path = made / f"{name}.json"
            before = json.loads(path.read_text()) if path.exists() else {}
            values = {**before, **values}
            write(made, None, **{name: {k: v for k, v in values.items() if v is not DROP}})
        return load_tokenizer(made)

    return copy


DROP = object()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_of_transformers(directories, family):
    ours = load_tokenizer(directories[family])
    theirs = transformers.AutoTokenizer.from_pretrained(directories[family])
    assert theirs.bos_token_id == ours.bos_id
    assert theirs.eos_token_id == ours.eos_id
    for text in [*TEXTS[:6], *ODD]:
        expected = theirs(text.strip(), add_special_tokens=False).input_ids
        assert ours.encode(text) == [*expected, ours.eos_id], text
        assert ours.encode_batch([text])[0] == ours.encode(text)
        again = ours.decode(ours.encode(text))
        assert again == theirs.decode(expected, skip_special_tokens=True).strip()
        if family in ("llama3", "gpt2") or text in TEXTS:
            assert again == text.strip()
    # What transformers puts before a text is what the decoder is given before an image.
    begins = theirs("a ball").input_ids[: -len(ours.encode("a ball")) + 1]
    assert family == "gpt2" or begins == list(ours.begin)


def test_how_texts_begin_and_end(directories):
    found = {name: load_tokenizer(directory) for name, directory in directories.items()}

    def spelt(name):
        tokenizer = found[name]
        begin = [tokenizer.token(i) for i in tokenizer.begin]
        return begin, [tokenizer.token(i) for i in tokenizer.eos_ids]

    assert spelt("qwen2") == ([], ["<|im_end|>", "<|endoftext|>"])
    assert spelt("llama3") == (
        ["<|begin_of_text|>"],
        ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
    )
    assert spelt("gpt2") == (["<|endoftext|>"], ["<|endoftext|>"])
    assert spelt("llama2") == spelt("unigram") == (["<s>"], ["</s>"])
    assert [t.ends.chat_template for t in found.values()] == [True, False, False, False, False]
    assert not any(tokenizer.ends.odd for tokenizer in found.values())
    (unused,) = found["qwen2"].ends.unused
    assert "config.json names a BOS" in unused and "the tokenizer has none" in unused
    told = found["qwen2"].describe()
    assert told.endswith(
        "no BOS, ends in <|im_end|> or <|endoftext|>; its chat template is not used"
    )
    assert found["llama2"].describe().endswith(" tokens, BOS <s>, ends in </s>")
    assert found["qwen2"].bos_id is None and found["qwen2"].eos_id == found["qwen2"].eos_ids[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_stops_at_any_end(directories, family):
    tokenizer = load_tokenizer(directories[family])
    ids = tokenizer.encode("a red ball")[:-1]
    for end in tokenizer.eos_ids:
        assert tokenizer.decode([*ids, end, *ids]) == "a red ball"
    # A caption that spells an end is a text.
    spelt = f"a {tokenizer.token(tokenizer.eos_ids[-1])} ball"
    ids = tokenizer.encode(spelt)
    assert not set(tokenizer.eos_ids).intersection(ids[:-1])


def test_fingerprints_of_one_bos_and_one_end_are_what_they_were(directories, changed, tmp_path):
    """Runs have recorded them: sha256 of (BOS, end), then of the file."""
    train_tokenizer(TEXTS, 340, tmp_path / "own")
    for directory in (tmp_path / "own", directories["llama2"], directories["gpt2"]):
        tokenizer = load_tokenizer(directory)
        digest = hashlib.sha256(repr((tokenizer.bos_id, tokenizer.eos_id)).encode())
        digest.update(b"tokenizer.json" + (directory / "tokenizer.json").read_bytes())
        assert tokenizer.fingerprint == digest.hexdigest()
    several = load_tokenizer(directories["llama3"])
    one = changed("llama3", config={"eos_token_id": DROP}, generation_config={"eos_token_id": DROP})
    assert one.eos_ids == several.eos_ids[:1] and one.fingerprint != several.fingerprint


def test_a_bos_that_is_not_put_before_texts(directories, changed):
    assert changed("llama3", tokenizer_config={"add_bos_token": False}).bos_id is not None  # it is
    plain = changed("qwen2", tokenizer_config={"bos_token": "<|im_start|>"})
    assert plain.bos_id is None and "add_bos_token is false" in plain.ends.unused[0]
    put = changed("qwen2", tokenizer_config={"bos_token": "<|im_start|>", "add_bos_token": True})
    assert [put.token(i) for i in put.begin] == ["<|im_start|>"]
    same = changed("gpt2", tokenizer_config={"add_bos_token": False})
    assert same.bos_id == same.eos_id and not same.ends.unused
    # transformers leaves out what is null, and its class for Qwen has no BOS of its own.
    saved = changed("qwen2", tokenizer_config={"bos_token": DROP})
    assert saved.bos_id is None and saved.ends.unused
    # Of no class, config.json has the last word.
    of_none = {"bos_token": DROP, "tokenizer_class": DROP, "add_bos_token": DROP}
    assert changed("qwen2", tokenizer_config=of_none).bos_id is not None


def test_ends_that_the_tokenizer_does_not_have(changed):
    tokenizer = changed("llama2", generation_config={"eos_token_id": [2, 70, 4000]})
    assert tokenizer.eos_ids == (2,)
    word, none = sorted(tokenizer.ends.odd, key=len, reverse=True)
    assert "names the end 70, which is the word '<0x43>': it ends nothing" in word
    assert none == "generation_config.json names the end 4000, which is no id of the tokenizer"
    spelt = {"eos_token": DROP, "bos_token": DROP, "tokenizer_class": DROP, "add_bos_token": DROP}
    lacking = changed("llama2", tokenizer_config=spelt, config={"bos_token_id": 9999})
    assert lacking.bos_id is None and "names the BOS 9999" in lacking.ends.odd[0]
    assert lacking.eos_ids == (2,)
    with pytest.raises(UserError, match=r"has no eos token: .*got '<end>'.*got None"):
        changed("llama2", tokenizer_config={"eos_token": "<end>"})
    with pytest.raises(UserError, match=r"eos_token_id: needs int"):
        changed("llama2", generation_config={"eos_token_id": "2"})
    with pytest.raises(UserError, match="has no bos token"):
        changed("llama3", tokenizer_config={"bos_token": "<begin>"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_captioner_takes_them_over(workspace, directories, family, tmp_path):
    """And the rows of a padded vocabulary have no word."""
    tokenizer = load_tokenizer(directories[family])
    blueprint = read_parts(configure(workspace, tmp_path / "run").model).blueprint
    rows = 1024
    lm = dataclasses.replace(blueprint.config.lm, vocab_size=rows)
    config = dataclasses.replace(blueprint.config, lm=lm)
    config = dataclasses.replace(blueprint, config=config).with_text(tokenizer).config
    assert config.bos_id == tokenizer.bos_id and config.eos_ids == tokenizer.eos_ids
    assert config.wordless[-1] == (tokenizer.vocab_size, rows)
    written = llava_processor.generation_config(config, 9)
    ends = list(config.eos_ids)
    assert written["eos_token_id"] == (ends if len(ends) > 1 else ends[0])
    assert written["pad_token_id"] == ends[0] and written["bos_token_id"] == config.bos_id
    assert set(written["suppress_tokens"]) == {
        i for first, stop in config.wordless for i in range(first, stop)
    }
    small = dataclasses.replace(config, lm=dataclasses.replace(lm, vocab_size=8))
    with pytest.raises(UserError, match="ids but the model only 8"):
        dataclasses.replace(blueprint, config=small).with_text(tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_as_a_llavas(directories, family, tmp_path):
    """`<image>` joins the vocabulary, BOS comes first where there is one, and the exported
    directory is read as what it was."""
    ours = load_tokenizer(directories[family])
    text, image_id = llava_processor.tokenizer_with_image(ours)
    assert image_id == ours.vocab_size
    (tmp_path / "tokenizer.json").write_text(text)
    write(tmp_path, None, tokenizer_config=llava_processor.tokenizer_config(ours))
    write(tmp_path, None, generation_config={"eos_token_id": list(ours.eos_ids)})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.bos_token_id == ours.bos_id and theirs.eos_token_id == ours.eos_id
    for caption in ("a dog on a sofa.", "Zwei Männer; 2 Hüte!", ""):
        written = llava_processor.text_input(ours, caption)
        expected = [*ours.begin, image_id, *ours.encode(caption)[:-1]]
        assert theirs(written).input_ids == expected
    again = load_tokenizer(tmp_path)
    assert (again.bos_id, again.eos_ids) == (ours.bos_id, ours.eos_ids)
