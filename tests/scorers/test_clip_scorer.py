"""CLIPScore from files against a transcription in PyTorch with transformers' CLIP."""

import json

import numpy as np
import pytest
from PIL import Image

from har_jax.data.images import Preprocessor
from har_jax.errors import UserError
from har_jax.scorers.clip import ClipScorer, independence_warning
from har_jax.text.tokenizer import train_clip_tokenizer

SIDE, CONTEXT = 32, 40
REFERENCES = {
    11: ["a red circle", "one red circle on white", "circle"],
    5: ["two blue squares", "a pair of squares that are blue and side by side " * 4],
    8: ["the green star"],
}
PREDICTIONS = {11: "a red square", 5: "two blue squares", 8: "Ein grüner Stern, ganz fremd!"}

ALL = [*PREDICTIONS.values(), *(text for group in REFERENCES.values() for text in group)]


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory):
    """A random CLIP as transformers saves it."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    path = tmp_path_factory.mktemp("clip")
    texts = [text for group in REFERENCES.values() for text in group]
    tokenizer = train_clip_tokenizer(texts, 560, path, CONTEXT)
    shared = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    config = CLIPConfig(
        text_config=dict(
            **shared,
            vocab_size=tokenizer.vocab_size,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
        ),
        vision_config=dict(**shared, image_size=SIDE, patch_size=8),
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the near-zero initial weights
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    settings = Preprocessor.for_size(SIDE).to_hf()
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    sizes = {11: (40, 60), 5: (32, 32), 8: (90, 50)}
    return {
        i: Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for i, (h, w) in sizes.items()
    }


def in_pytorch(clip_dir, images, predictions, references):
    """clipscore.py of jmhessel/clipscore, line by line: get_clip_score and get_refonlyclipscore."""
    import torch
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(clip_dir).eval()
    processor = CLIPImageProcessor.from_pretrained(clip_dir)
    tokenizer = AutoTokenizer.from_pretrained(clip_dir)

    def normalised(x):
        x = x.pooler_output if hasattr(x, "pooler_output") else x
        x = x.detach().numpy().astype(np.float64)
        return x / np.sqrt(np.sum(x**2, axis=1, keepdims=True))

    def texts(captions):
        prompted = ["A photo depicts " + c for c in captions]
        ids = tokenizer(
            prompted, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt"
        )
        with torch.no_grad():
            return normalised(model.get_text_features(ids["input_ids"]))

    ids = list(images)
    with torch.no_grad():
        pixels = processor([images[i] for i in ids], return_tensors="pt")["pixel_values"]
        image_ne = normalised(model.get_image_features(pixels))
    candidate_ne = texts([predictions[i] for i in ids])
    per_image = 2.5 * np.clip(np.sum(image_ne * candidate_ne, axis=1), 0, None)
    per_text = np.array([np.max(texts(references[i]) @ candidate_ne[k]) for k, i in enumerate(ids)])
    refclip = 2 * per_image * per_text / (per_image + per_text)
    return dict(zip(ids, zip(per_image, refclip, strict=True), strict=True))


def test_equals_the_pytorch_transcription(clip_dir, images):
    expected = in_pytorch(clip_dir, images, PREDICTIONS, REFERENCES)
    assert any(value > 0 for value, _ in expected.values()), "a test of zeros shows nothing"
    scorer = ClipScorer(clip_dir, batch_size=4)
    lengths = [
        len(scorer.files.tokenize._tokenizer.encode("A photo depicts " + t).ids) for t in ALL
    ]
    assert min(lengths) < CONTEXT < max(lengths), "padded and truncated texts"
    found = scorer.score(images.items(), PREDICTIONS, REFERENCES)
    for i in images:
        np.testing.assert_allclose(found.per_image[i], expected[i], atol=2e-6)
    first, second = zip(*expected.values(), strict=True)
    assert found.clip_score == pytest.approx(np.mean(first), abs=2e-6)
    assert found.ref_clip_score == pytest.approx(np.mean(second), abs=2e-6)


def test_photographs_equal_the_pytorch_transcription(clip_dir, real_data):
    """JPEGs as they are on disk, of any size; one of their own captions is the prediction."""
    folder = real_data / "coco_mini"
    coco = json.loads((folder / "annotations/captions_val2017.json").read_text())
    names = {image["id"]: folder / "val2017" / image["file_name"] for image in coco["images"]}
    captions = {}
    for annotation in coco["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    paths = {i: names[i] for i in list(captions)[:40] if names[i].is_file()}
    assert len(paths) >= 20
    predictions = {i: captions[i][0] for i in paths}
    references = {i: captions[i][1:] for i in paths}
    pictures = {i: Image.open(path) for i, path in paths.items()}
    expected = in_pytorch(clip_dir, pictures, predictions, references)
    assert np.ptp([value for value, _ in expected.values()]) > 1e-3
    found = ClipScorer(clip_dir).score(paths.items(), predictions, references)
    for i in paths:
        np.testing.assert_allclose(found.per_image[i], expected[i], atol=1e-4)


def test_the_batch_size_changes_nothing(clip_dir, images):
    a = ClipScorer(clip_dir, batch_size=1).score(images.items(), PREDICTIONS, REFERENCES)
    b = ClipScorer(clip_dir, batch_size=64).score(images.items(), PREDICTIONS, REFERENCES)
    assert list(a.per_image) == list(b.per_image) == list(images)
    np.testing.assert_allclose(list(a.per_image.values()), list(b.per_image.values()), atol=1e-6)


def test_each_tower_is_compiled_once(clip_dir, images):
    scorer = ClipScorer(clip_dir, batch_size=2)
    scorer.score(images.items(), PREDICTIONS, REFERENCES)
    assert all(scorer._tower(name).func._cache_size() == 1 for name in ("vision", "text"))


def test_the_signature_names_the_weights(clip_dir):
    scorer = ClipScorer(clip_dir)
    assert scorer.fingerprint.removeprefix("sha256:")[:12] in scorer.signature


def test_captions_tell_apart(clip_dir):
    texts = [*PREDICTIONS.values(), *REFERENCES[11]]
    embedded = ClipScorer(clip_dir).embed_texts(texts)
    cosines = embedded @ embedded.T
    assert np.max(cosines[~np.eye(len(texts), dtype=bool)]) < 0.9999


@pytest.mark.parametrize("key", ["eos_token_id", "vocab_size"])
def test_another_models_tokenizer_is_refused(clip_dir, tmp_path, key):
    """With a wrong end of text the tower would embed every caption alike, without any error."""
    import shutil

    copy = shutil.copytree(clip_dir, tmp_path / "clip")
    if key == "eos_token_id":
        config = json.loads((copy / "config.json").read_text())
        config["text_config"]["eos_token_id"] = 49407
        (copy / "config.json").write_text(json.dumps(config))
        message = "ends texts with id .* is 49407"
    else:
        texts = [text for group in REFERENCES.values() for text in group]
        train_clip_tokenizer([*texts, "entirely different words here"], 600, copy, CONTEXT)
        message = "ends texts with|has .* ids, but the model only"
    with pytest.raises(UserError, match=message):
        ClipScorer(copy)


def test_no_clip_there(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        ClipScorer(tmp_path / "nowhere")


def test_warns_where_clipscore_is_not_independent():
    mine, other = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
    run = {
        "base": {"encoder": {"path": "models/clip-l", "fingerprint": mine}},
        "reward_signature": f"0.5*CLIP-S[{other[7:19]}]+CIDEr-D",
    }
    assert "own encoder (models/clip-l)" in independence_warning(mine, run)
    assert "part of the reward" in independence_warning(other, run)
    assert independence_warning("sha256:" + "ef" * 32, run) is None
    assert independence_warning(mine, {"base": {}, "reward_signature": None}) is None
