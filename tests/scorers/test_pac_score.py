"""PAC-S: the published code's formulas on the cosines of transformers' CLIP; and as a reward."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from har_jax import evaluate, metrics
from har_jax.data.dataset import open_split, words_of
from har_jax.errors import UserError
from har_jax.metrics.embedding_scores import CLIP, KINDS, PAC
from har_jax.scorers.clip import ClipScorer
from har_jax.scorers.split_reward import split_reward


@pytest.fixture(scope="module")
def clip(workspace):
    return workspace / "models/clip-b"


@pytest.fixture(scope="module")
def few(workspace):
    """Four images of the test split: pictures, captions (each of another image) and references."""
    split = open_split(workspace / "data", "test")
    ids = split.ids[:4]
    pictures = {i: Image.open(io.BytesIO(split.read(k))) for k, i in enumerate(ids)}
    references = {i: split.references()[i] for i in ids}
    captions = {i: references[j][0] for i, j in zip(ids, ids[1:] + ids[:1], strict=True)}
    return pictures, captions, references


@pytest.fixture(scope="module")
def published(clip, few):
    """aimagelab/pacscore: PACScore (w 2.0) and RefPACScore, their harmonic mean as in its
    compute_metrics.py."""
    import torch
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    pictures, captions, references = few
    model = CLIPModel.from_pretrained(clip).eval()
    tokenizer = AutoTokenizer.from_pretrained(clip)
    pixels = CLIPImageProcessor.from_pretrained(clip)(list(pictures.values()), return_tensors="pt")

    def unit(x):
        x = getattr(x, "pooler_output", x).detach().numpy().astype(np.float64)
        return x / np.sqrt(np.sum(x**2, axis=1, keepdims=True))

    def texts(some):
        told = ["A photo depicts " + text for text in some]
        ids = tokenizer(told, padding=True, truncation=True, max_length=40, return_tensors="pt")
        return unit(model.get_text_features(**ids))

    with torch.no_grad():
        image_ne, own = unit(model.get_image_features(**pixels)), texts(captions.values())
        pac = 2.0 * np.clip(np.sum(image_ne * own, axis=1), 0, None)
        best = [np.max(texts(references[i]) @ own[k]) for k, i in enumerate(captions)]
    ref = 2 * pac * best / (pac + best)
    assert pac.max() > 0.05 and np.min(best) > 0
    return pac, np.where(pac > 0, ref, 0)


def test_equals_the_published_formulas(clip, few, published):
    pictures, captions, references = few
    found = metrics.clip_score(pictures, captions, references, clip=clip, kind="pac")
    pac, ref = published
    rows = [found.per_image[i] for i in captions]
    np.testing.assert_allclose([row["PAC-S"] for row in rows], pac, atol=2e-6)
    np.testing.assert_allclose([row["RefPAC-S"] for row in rows], ref, atol=2e-6)
    assert found["PAC-S"] == pytest.approx(pac.mean(), abs=2e-6)
    assert found.signature.startswith("PAC-S[w2.0,prompt='A photo depicts',raw,clip=")


@pytest.mark.usefixtures("untyped")
def test_on_plain_images_and_texts(clip, few, published, tmp_path):
    """Lists as mappings, files as pictures; without references; CLIPScore is 2.5 / 2 of PAC-S."""
    pictures, captions, references = few
    pac, _ = published
    paths = []
    for i, picture in pictures.items():
        paths.append(tmp_path / f"{i}.png")
        picture.save(paths[-1])
    scorer = ClipScorer(clip, batch_size=3)
    texts = list(captions.values())
    alone = metrics.clip_score(paths, texts, clip=scorer)
    assert list(alone.corpus) == ["CLIPScore"] and list(alone.per_image) == [0, 1, 2, 3]
    values = [alone.per_image[k]["CLIPScore"] for k in range(4)]
    np.testing.assert_allclose(values, 1.25 * pac, atol=2e-6)
    arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures.values()])
    for given in (arrays, list(arrays)):
        seen = metrics.clip_score(given, texts, clip=scorer)
        assert seen["CLIPScore"] == pytest.approx(alone["CLIPScore"], abs=1e-6)
    with pytest.raises(UserError, match=r"is an array of uint8 \[64,64\]; an image's is of uint8"):
        metrics.clip_score(list(arrays[..., 0]), texts, clip=scorer)
    with pytest.raises(UserError, match="batch_size is 0; it must be at least 1"):
        metrics.clip_score(paths, texts, clip=clip, batch_size=0)
    both = metrics.clip_score(paths, texts, list(references.values()), clip=scorer)
    assert both["CLIPScore"] == pytest.approx(alone["CLIPScore"], abs=1e-6)
    assert set(both.corpus) == {"CLIPScore", "RefCLIPScore"}
    for wrong, told in (
        ((paths, "a dog"), "the captions are 'a dog'"),
        ((paths[:3], texts), "4 captions and 3 images"),
        ((pictures, texts), "give lists of one order"),
        ((paths, texts, texts), "each of whose letters"),
        (([tmp_path / "none.png", *paths[1:]], texts), "none.png"),
    ):
        with pytest.raises(UserError, match=told):
            metrics.clip_score(*wrong, clip=scorer)
    with pytest.raises(UserError, match="choose from clip, pac"):
        metrics.clip_score(paths, texts, clip=clip, kind="pacs")


def test_as_a_reward(workspace, clip, few, published):
    """`pac_score` of the sum, over the images of a split."""
    _, captions, _ = few
    split = open_split(workspace / "data", "test")
    words = words_of(split.directory)
    reward = split_reward("0.5*pac_score", split, words, clip=str(clip))
    ids, rows = np.array(list(captions)), [[text] for text in captions.values()]
    values = reward(ids, rows, np.ones((4, 1), bool))
    np.testing.assert_allclose(values[:, 0], 0.5 * published[0], atol=1e-5)
    assert "PAC-S[w2.0" in reward.signature
    for spec, given, told in (
        ("clip_score + pac_score", clip, "which are by CLIPs of different weights"),
        ("bleu", clip, "has no part in the reward 'bleu'"),
        ("pac_score", "", "the reward pac_score needs a CLIP"),
    ):
        with pytest.raises(UserError, match=told):
            split_reward(spec, split, words, clip=str(given))


def test_evaluate_has_both(workspace, clip, few, published, tmp_path):
    """--clip and --pac, by different weights; what is not asked for is not in scores.json."""
    _, captions, _ = few
    split = open_split(workspace / "data", "test")
    (tmp_path / "images").mkdir()
    for k, name in enumerate(split.filenames[:4]):
        (tmp_path / "images" / name).write_bytes(split.read(k))
    rows = [{"image_id": i, "caption": text} for i, text in captions.items()]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    given = [f"--predictions={tmp_path / 'results.json'}", f"--out={tmp_path / 'out'}"]
    given += [f"--references={workspace / 'data/captions.test.json'}", "--metrics=CIDEr"]
    assert evaluate.main([*given, f"--pac={clip}"]) == 2  # without images
    images = f"--images={tmp_path / 'images'}"
    assert evaluate.main([*given, images, f"--pac={clip}", f"--clip={clip.parent / 'clip-l'}"]) == 0
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    pac, ref = published
    assert scores["PAC-S"] == pytest.approx(pac.mean(), abs=1e-5)
    assert scores["RefPAC-S"] == pytest.approx(ref.mean(), abs=1e-5)
    assert scores["CLIPScore"] is not None and scores["CLIPScore"] != pytest.approx(
        1.25 * pac.mean()
    )
    assert {"PAC-S", "RefPAC-S", "CLIPScore"} <= scores["confidence"]["intervals"].keys()
    assert "+CLIPScore[w2.5" in scores["signature"] and "+PAC-S[w2.0" in scores["signature"]
    assert evaluate.main(given) == 0
    assert "PAC-S" not in json.loads((tmp_path / "out/scores.json").read_text())
    assert tuple(KINDS.values()) == (CLIP, PAC)
