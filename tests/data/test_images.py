"""Pixels equal Hugging Face's CLIPImageProcessor (PIL) bit for bit, whatever the photograph."""

import io
import itertools
import json
import resource
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from har_jax.data import decode as decoding
from har_jax.data import images
from har_jax.data.decode import decode
from har_jax.data.images import Preprocessor
from har_jax.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def hf_class():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode, size=(61, 43)):
    bands = len(Image.new(mode, (1, 1)).getbands())
    array = RNG.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.frombytes(mode, size, array.tobytes())


def palette_with_transparency():
    image = noise("RGB").quantize(16)
    return encoded(image, transparency=3)


KINDS = {
    "rgb png": lambda: encoded(noise("RGB")),
    "grayscale png": lambda: encoded(noise("L")),
    "grayscale jpeg": lambda: encoded(noise("L"), "JPEG"),
    "gray with alpha": lambda: encoded(noise("LA")),
    "alpha": lambda: encoded(noise("RGBA")),
    "palette": lambda: encoded(noise("RGB").quantize(64)),
    "palette with a transparent colour": palette_with_transparency,
    "bilevel": lambda: encoded(noise("L").convert("1")),
    "jpeg": lambda: encoded(noise("RGB"), "JPEG", quality=80),
    "progressive jpeg": lambda: encoded(noise("RGB"), "JPEG", progressive=True),
    "cmyk jpeg": lambda: encoded(noise("CMYK"), "JPEG"),
    "animated gif": lambda: encoded(
        noise("RGB").quantize(32), "GIF", save_all=True, append_images=[noise("RGB").quantize(32)]
    ),
    "webp": lambda: encoded(noise("RGB"), "WEBP"),
    "bmp": lambda: encoded(noise("RGB"), "BMP"),
    "tiff of 4 bands": lambda: encoded(noise("CMYK"), "TIFF"),
}


def hf_pixels(processor, image):
    batch = processor(images=image, return_tensors="np")["pixel_values"]
    return np.moveaxis(np.asarray(batch)[0], 0, -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [16, 64])
def test_equals_hf_for_every_kind_of_file(hf_class, kind, side):
    data = KINDS[kind]()
    processor = hf_class(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    ours = Preprocessor.for_size(side)(data)
    theirs = hf_pixels(processor, Image.open(io.BytesIO(data)))
    assert ours.dtype == np.float32 and ours.shape == (side, side, 3)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 90), (90, 1), (7, 300), (64, 64), (65, 64), (333, 97)]
)
def test_equals_hf_for_every_shape(hf_class, size):
    image = noise("RGB", size)
    processor = hf_class(size={"shortest_edge": 33}, crop_size={"height": 33, "width": 33})
    np.testing.assert_array_equal(Preprocessor.for_size(33)(image), hf_pixels(processor, image))


@pytest.mark.parametrize("resample", list(Image.Resampling), ids=lambda filter: filter.name)
def test_resizing_only_what_the_crop_keeps_is_exact(resample):
    """Every order of Pillow's passes: all small sizes to all others, cropped to every width."""
    sizes = (1, 2, 3, 4, 7)
    for width, height in itertools.product(sizes, sizes):
        image = noise("RGB", (width, height))
        for size in itertools.product(sizes, sizes):  # height, width
            whole = np.asarray(image.resize(size[::-1], resample=resample))
            for kept in range(1, size[1]):
                ours = Preprocessor(0, size, (size[0], kept), resample=int(resample))
                left = (size[1] - kept) // 2
                np.testing.assert_array_equal(
                    ours.pixels(image),
                    whole[:, left : left + kept],
                    err_msg=f"{width} x {height} to {size[1]} x {size[0]}, cropped to {kept}",
                )


@given(
    size=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    edge=st.integers(1, 70),
    crop=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    resample=st.sampled_from(list(Image.Resampling)),
    mode=st.sampled_from(["RGB", "L", "RGBA"]),
)
def test_equals_hf_whatever_is_drawn(hf_class, size, edge, crop, resample, mode):
    image = noise(mode, size)
    processor = hf_class(
        size={"shortest_edge": edge},
        crop_size={"height": crop[0], "width": crop[1]},
        resample=int(resample),
    )
    ours = Preprocessor(shortest_edge=edge, crop_size=crop, resample=int(resample))
    np.testing.assert_array_equal(ours(image), hf_pixels(processor, image))


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"height": 20, "width": 31}, "do_center_crop": False},
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 31, "width": 17}},
        {"size": {"shortest_edge": 21}, "crop_size": {"height": 52, "width": 71}},
        {"do_resize": False, "crop_size": {"height": 50, "width": 50}},
        {"resample": 2, "size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
        {"rescale_factor": 1 / 127.5, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.7, 1.1]},
        {"do_normalize": False},
        {"do_rescale": False},
    ],
    ids=str,
)
def test_equals_hf_for_every_setting(hf_class, config, tmp_path):
    """The settings go through the files: HF writes them, we read and write them, HF reads ours."""
    processor = hf_class(**config)
    processor.save_pretrained(tmp_path)
    ours = Preprocessor.from_hf(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ours.to_hf()))
    again = hf_class.from_pretrained(tmp_path)
    for size in ((61, 43), (43, 61), (300, 40)):
        image = noise("RGB", size)
        expected = hf_pixels(processor, image)
        np.testing.assert_array_equal(ours(image), expected)
        np.testing.assert_array_equal(hf_pixels(again, image), expected)
    assert Preprocessor.from_hf(tmp_path) == ours
    assert Preprocessor.from_hf(tmp_path).fingerprint == ours.fingerprint


def test_equals_hf_on_real_photographs(hf_class, real_data):
    paths = sorted((real_data / "coco_mini" / "val2017").glob("*.jpg"))[:12]
    processor, ours = hf_class(), Preprocessor()
    assert paths
    for path in paths:
        np.testing.assert_array_equal(ours(path), hf_pixels(processor, Image.open(path)))


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
OTHERS = [
    ("siglip", {}),
    ("siglip", {"size": {"height": 32, "width": 24}, "resample": 2}),
    ("siglip", {"size": {"height": 48, "width": 48}, "do_convert_rgb": None}),
    ("bit", {"size": {"shortest_edge": 256}, **IMAGENET}),
    ("bit", {"size": {"shortest_edge": 40}, "crop_size": {"height": 35, "width": 35}}),
]


@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
@pytest.mark.parametrize(("kind", "config"), OTHERS, ids=str)
def test_equals_hf_for_other_encoders(kind, config, suffix, tmp_path):
    """SigLIP's processor resizes to one shape, DINOv2's (a BiT's) crops; keys that their files
    lack are those of their own classes."""
    import transformers

    name = {"siglip": "SiglipImageProcessor", "bit": "BitImageProcessor"}[kind]
    processor = getattr(transformers, f"{name}Pil")(**config)
    processor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"image_processor_type": name + suffix})
    )
    bare = {**config, "image_processor_type": name + suffix}
    for contents in (json.loads(file.read_text()), bare):
        file.write_text(json.dumps(contents))
        ours = Preprocessor.from_hf(tmp_path)
        for size in ((61, 43), (43, 61), (300, 40), (224, 224)):
            image = noise("RGB", size)
            np.testing.assert_array_equal(ours(image), hf_pixels(processor, image))


def test_old_configs_with_plain_numbers(tmp_path):
    """openai/clip-vit-large-patch14's own preprocessor_config.json."""
    config = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert Preprocessor.from_hf(tmp_path) == Preprocessor()


def test_what_transformers_5_saves(tmp_path):
    """A whole processor in one file, and no crop where none is made."""
    whole = {"processor_class": "CLIPProcessor", "image_processor": Preprocessor().to_hf()}
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    assert Preprocessor.from_hf(tmp_path) == Preprocessor()
    plain = {"do_center_crop": False, "crop_size": None, "size": {"height": 20, "width": 30}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(plain))
    found = Preprocessor.from_hf(tmp_path)
    assert (found.do_center_crop, found.output_size) == (False, (20, 30))


@pytest.mark.parametrize(
    "change",
    [
        {"do_pad": True}, {"no_such_step": 3}, {"image_processor_type": "Siglip2ImageProcessor"},
        {"crop_size": None}, {"size": {"shortest_edge": -1}}, {"size": 10**12}, {"resample": 17},
        {"image_std": [0.5, 0.0, 0.5]}, {"image_mean": [0.1, 0.2]}, {"rescale_factor": "small"},
        {"image_std": [0.5, 1e-40, 0.5]}, {"rescale_factor": 1e-300},
        {"size": {"shortest_edge": 3, "height": 4, "width": 5}}, {"do_resize": "yes"},
        {"crop_size": {"height": 4}}, {"size": {"longest_edge": 3}}, {"do_convert_rgb": False},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_other_processors_are_refused_by_name(change, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(change))
    with pytest.raises(UserError, match=next(iter(change))):
        Preprocessor.from_hf(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_on_its_side_is_turned_upright(hf_class, orientation):
    """Here we differ from HF on purpose: EXIF orientation is obeyed."""
    upright = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    turn = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in turn.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(upright))
    as_stored = decode(data, upright=False)
    np.testing.assert_array_equal(np.asarray(as_stored), np.asarray(stored))


def test_sixteen_bits_keep_their_high_byte():
    """Pillow's own conversion, hence HF, clips everything above 255 to white."""
    values = (np.arange(60, dtype=np.uint16) * 1092).reshape(6, 10)
    result = np.asarray(decode(encoded(Image.fromarray(values))))
    np.testing.assert_array_equal(result, np.repeat((values >> 8)[..., None], 3, -1))


def test_what_has_no_white_is_refused_by_name():
    for kind in (np.float32, np.int32):
        values = np.linspace(0, 1, 60).reshape(6, 10).astype(kind)
        with pytest.raises(UserError, match=r"of 32 bits, and no rule says .* 8 or 16 bits"):
            decode(encoded(Image.fromarray(values), "TIFF"))
    gray = decode(b"P5 2 1 1023\n" + bytes([3, 255, 0, 0]))  # a PGM of 10 bits says that it has 10
    assert [gray.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    with pytest.raises(UserError, match="not an image in one of JPEG, PNG"):  # nor is it run
        decode(postscript)


def test_bands_are_the_whole(monkeypatch):
    pictures = [noise("RGBA"), noise("LA"), Image.open(io.BytesIO(palette_with_transparency()))]
    pictures.append(Image.fromarray(RNG.integers(0, 2**16, (43, 61), np.uint16)))
    whole = [np.asarray(decode(picture)) for picture in pictures]
    monkeypatch.setattr(decoding, "_BAND", 130)
    for picture, expected in zip(pictures, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(decode(picture)), expected)


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1), (3, 70_000), (1, 2_000)], ids=str)
def test_resizing_does_not_grow_what_the_crop_throws_away(size):
    """2 kB of PNG took 6 GB and a minute; a strip of gray stays gray, in milliseconds."""
    data = encoded(Image.new("L", size, 130))
    began = time.process_time()
    tracked = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = Preprocessor().pixels(data)
    assert pixels.shape == (224, 224, 3) and (pixels == 130).all()
    assert Preprocessor(do_resize=False).pixels(data).shape == (224, 224, 3)
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - tracked < 300_000  # kB


@pytest.mark.parametrize("resample", list(Image.Resampling), ids=lambda filter: filter.name)
@pytest.mark.parametrize("size", [(5, 300), (300, 5), (40, 31), (200, 90), (1, 1)], ids=str)
def test_the_way_of_long_images_is_that_of_others(size, resample):
    """Taken with images of every shape: within a byte's rounding of the whole resize."""
    image = noise("RGB", size)
    for ours in (
        Preprocessor(shortest_edge=33, crop_size=(33, 33), resample=int(resample)),
        Preprocessor(shortest_edge=20, crop_size=(31, 17), resample=int(resample)),
        Preprocessor(0, (20, 31), (20, 31), do_center_crop=False, resample=int(resample)),
    ):
        width, height = ours._resized(*image.size)
        down = 0 < image.height - height > 2 * (image.width - width)
        found = np.asarray(ours._resize_long(image, width, height, down)).astype(int)
        if ours.do_center_crop:
            found = images._center_crop(found, *ours.crop_size)
        if resample in (Image.Resampling.NEAREST, Image.Resampling.BOX):  # ties go either way
            assert (found == ours.pixels(image)).mean() > 0.9
        else:
            assert np.abs(found - ours.pixels(image)).max() <= 2  # a byte in each pass


def test_paths_bytes_and_images_are_the_same(tmp_path):
    image = noise("RGB")
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    preprocessor = Preprocessor.for_size(32)
    expected = preprocessor(image)
    for source in (path, str(path), path.read_bytes(), memoryview(path.read_bytes())):
        np.testing.assert_array_equal(preprocessor(source), expected)
    batch = np.stack([preprocessor.pixels(image)] * 2)
    np.testing.assert_array_equal(preprocessor.normalise(batch)[1], expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is not an image", "is not an image"),
        (encoded(noise("RGB"), "JPEG")[:700], "does not decode"),
        (encoded(noise("RGB"))[:900], "does not decode"),
        (encoded(noise("RGB"))[:30], "image odd"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "image odd"),
        (encoded(noise("RGB"), "JPEG")[:60], "image odd"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "cut header", "broken png", "jpeg header only"],
)
def test_what_is_no_image_is_named(data, message):
    with pytest.raises(UserError, match=message) as error:
        decode(data, name="odd.jpg")
    assert "odd.jpg" in str(error.value) and "\n" not in str(error.value)


def test_an_absurdly_large_image_is_refused_before_it_is_decoded(monkeypatch):
    data = encoded(Image.new("1", (100, 100)))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="too large: 100 x 100 pixels"):
        decode(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own, of the formats that ask
    with pytest.raises(UserError, match="too large"):
        decode(data)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jpg cannot be read: No such file"):
        decode(tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match=r"no file .*preprocessor_config\.json'"):
        Preprocessor.from_hf(tmp_path)
    for text in ("{", '{"size": {"longest_edge": 3}}', '{"do_pad": true}', '{"image_mean": [1]}'):
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(UserError, match=r"preprocessor_config\.json"):
            Preprocessor.from_hf(tmp_path)
    with pytest.raises(UserError, match="neither crops nor resizes"):
        _ = Preprocessor(do_center_crop=False).output_size
