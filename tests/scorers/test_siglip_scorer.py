"""A SigLIP scores captions: embeddings, tokens and signature, against transformers."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from har_jax import evaluate
from har_jax.data.dataset import open_split
from har_jax.errors import UserError
from har_jax.metrics.embedding_scores import clip_score
from har_jax.scorers.clip import ClipFiles, ClipScorer
from har_jax.scorers.clip_reward import ClipScoreReward
from har_jax.text.siglip_tokenizer import canonical, load_siglip_tokenizer
from har_jax.zerocap.captioner import ZeroCap
from tests.models.encoders import shaken
from tests.zerocap.worlds import make_gpt2

SIDE, CONTEXT = 24, 16
TEXTS = [
    "A red circle, on the left!", "two  blue squares", "the green star is not here",
    "it's a dog's bone: 3 of them (or 4)", "a photo depicts a red square " * 5, "", "...", "Grün",
]  # fmt: skip


def write_sentencepiece(directory) -> None:
    """`spiece.model` as SigLIP's: lower-cased, without punctuation, `</s>` first and no prefix."""
    import sentencepiece

    corpus = [canonical(text) for text in TEXTS if canonical(text)] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_prefix=str(directory / "spiece"), vocab_size=70,
        model_type="unigram", add_dummy_prefix=False, bos_id=-1, pad_id=0, eos_id=1, unk_id=2,
        pad_piece="<pad>", minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (directory / "spiece.vocab").unlink()
    config = {"tokenizer_class": "SiglipTokenizer", "model_max_length": CONTEXT}
    config |= {"do_lower_case": True, "pad_token": "</s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def write_unigram(directory) -> None:
    """`tokenizer.json` as those of SigLIP on the hub."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=70, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "SiglipTokenizer", "model_max_length": CONTEXT}
    config |= {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def write_gemma(directory) -> None:
    """`tokenizer.json` as SigLIP 2's: a BPE with bytes, which does not lower-case by itself."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*specials, *letters], show_progress=False
    )
    words = [f"{word} " for text in TEXTS for word in text.lower().split()]
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "Siglip2Tokenizer", "model_max_length": CONTEXT}
    config |= {"padding_side": "right"}
    config |= {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


WRITERS = {"unigram": write_unigram, "gemma": write_gemma, "sentencepiece": write_sentencepiece}


@pytest.mark.parametrize("kind", WRITERS)
def test_tokens_are_those_of_transformers(kind, tmp_path):
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
    WRITERS[kind](tmp_path)
    ours = load_siglip_tokenizer(tmp_path, CONTEXT)
    if kind == "unigram":  # transformers' own class of SigLIP reads spiece.model alone
        theirs = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="</s>", eos_token="</s>"
        )
    elif kind == "gemma":
        theirs = transformers.Siglip2Tokenizer.from_pretrained(tmp_path)
    else:
        theirs = transformers.SiglipTokenizer.from_pretrained(tmp_path)
    wanted = theirs(TEXTS, padding="max_length", truncation=True, max_length=CONTEXT)["input_ids"]
    found = ours(TEXTS)
    assert found.dtype == np.int32 and found.shape == (len(TEXTS), CONTEXT)
    np.testing.assert_array_equal(found, wanted)
    assert len(set(map(tuple, found.tolist()))) >= len(TEXTS) - 1, "texts are told apart"
    assert found.max() < ours.vocab_size


@pytest.fixture(scope="module")
def siglip_dir(tmp_path_factory):
    """A random SigLIP as transformers saves it."""
    path = tmp_path_factory.mktemp("siglip")
    write_unigram(path)
    shared = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    vocabulary = load_siglip_tokenizer(path, CONTEXT).vocab_size
    config = transformers.SiglipConfig(
        text_config=dict(**shared, vocab_size=vocabulary, max_position_embeddings=CONTEXT),
        vision_config=dict(**shared, image_size=SIDE, patch_size=8),
    )
    torch.manual_seed(1)
    shaken(transformers.SiglipModel(config), 1).save_pretrained(path)
    side = {"height": SIDE, "width": SIDE}
    transformers.SiglipImageProcessor(size=side).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (32, 32), (90, 50)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


def test_embeddings_and_scores_are_those_of_transformers(siglip_dir, pictures):
    model = transformers.SiglipModel.from_pretrained(siglip_dir).eval()
    processor = transformers.SiglipImageProcessorPil.from_pretrained(siglip_dir)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(siglip_dir / "tokenizer.json"), pad_token="</s>", eos_token="</s>"
    )
    captions = TEXTS[:3]
    prompted = [f"A photo depicts {text}" for text in captions]
    ids = tokenizer(
        prompted, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        looks = model.get_image_features(pixels).pooler_output.numpy()
        texts = model.get_text_features(ids).pooler_output.numpy()
    scorer = ClipScorer(siglip_dir, batch_size=2)
    for ours, theirs in (
        (scorer.embed_images(pictures), looks),
        (scorer.embed_texts(captions), texts),
    ):
        np.testing.assert_allclose(
            ours, theirs / np.linalg.norm(theirs, axis=1, keepdims=True), atol=1e-5
        )
    found = scorer.score(
        list(enumerate(pictures)), dict(enumerate(captions)), {i: ["a star"] for i in range(3)}
    )
    wanted = clip_score(looks, texts)
    np.testing.assert_allclose([found.per_image[i][0] for i in range(3)], wanted, atol=1e-5)
    assert wanted.max() > 0


def test_the_signature_says_that_it_is_a_siglip(siglip_dir):
    files = ClipFiles(siglip_dir)
    weights = files.fingerprint.removeprefix("sha256:")[:12]
    assert files.signature == f"CLIPScore[w2.5,prompt='A photo depicts',raw,siglip={weights}]"


def test_as_a_reward(siglip_dir, workspace):
    """Its device half computes what scoring does, from the shapes that it announces."""
    images = open_split(workspace / "data", "val")
    part = ClipScoreReward(siglip_dir, images)
    captions = [["a red circle", "a dog"], ["two squares", "a star"]]
    ended = np.ones((2, 2), bool)
    ids = np.asarray(images.ids[:2])
    wanted = part(ids, captions, ended)
    params = part.load(None)
    operands = part.prepare(ids, captions)
    shapes = [(x.shape, x.dtype) for x in operands]
    assert shapes == [(shape, np.dtype(kind)) for shape, kind in part.shapes(2, 2)]
    np.testing.assert_allclose(jax.jit(part.in_jit)(params, *operands), wanted, atol=1e-5)


def without_text_tower(directory) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "dinov2"}))


def test_what_has_no_text_tower_is_refused(tmp_path, capsys):
    without_text_tower(tmp_path / "dino")
    with pytest.raises(UserError, match=r"'dinov2', which has no text tower.*'clip' or 'siglip'"):
        ClipFiles(tmp_path / "dino")
    (tmp_path / "1.jpg").write_bytes(b"")
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": 1, "caption": "a dog"}]))
    (tmp_path / "r.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.jpg"}],
                "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}],
            }
        )
    )
    code = evaluate.main([
        f"--predictions={tmp_path / 'p.json'}", f"--references={tmp_path / 'r.json'}",
        f"--images={tmp_path}", f"--clip={tmp_path / 'dino'}", f"--out={tmp_path / 'out'}",
    ])  # fmt: skip
    assert code == 2
    assert "has no text tower" in capsys.readouterr().err


def test_zerocap_says_why_it_takes_a_clip_alone(siglip_dir, tmp_path):
    make_gpt2(tmp_path / "gpt2")
    with pytest.raises(UserError, match=r"is a SigLIP, whose text tower reads both ways.*a CLIP"):
        ZeroCap(siglip_dir, tmp_path / "gpt2")
