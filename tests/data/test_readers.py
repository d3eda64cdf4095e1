"""Flickr, nocaps and anyone's own folder: files to entries, whole and broken."""

import json

import pytest

from har_jax import ids
from har_jax.data.entries import Problems
from har_jax.data.readers import coco, flickr, folder
from har_jax.data.readers.shares import Shares
from har_jax.errors import UserError


@pytest.fixture
def save(tmp_path):
    def save(text, name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    return save


@pytest.fixture
def read(tmp_path):
    """Reads a folder: {name: (split, captions)}."""

    def read(*files, problems=None, **options):
        options = {"shares": Shares(), "problems": problems or Problems()} | options
        reading = folder.read_folder(tmp_path, files, **options)
        assert reading.ids == ""  # ids of one's own mean nothing to others
        return {e.names[0]: (e.split, [text for _, text in e.captions]) for e in reading.entries}

    return read


CSV = {
    "commas": "image,caption\na.jpg,one\nb.jpg,\"two, and\"\na.jpg,three\n",
    "another order": "caption,source,file_name\none,x,a.jpg\n\"two, and\",y,b.jpg\nthree,z,a.jpg\n",
    "semicolons": "filename;caption\na.jpg;one\nb.jpg;two, and\na.jpg;three\n",
    "tabs": "image\tcaption\na.jpg\tone\nb.jpg\ttwo, and\na.jpg\tthree\n",
    "bars": "image_name| number| comment\na.jpg| 0| one\nb.jpg| 0| two, and\na.jpg| 1| three\n",
    "no header": "a.jpg,one\nb.jpg,\"two, and\"\na.jpg,three\n",
    "a byte-order mark": "\ufeffimage,caption\na.jpg,one\nb.jpg,\"two, and\"\na.jpg,three\n",
    "CRLF": "image,caption\r\na.jpg,one\r\nb.jpg,\"two, and\"\r\na.jpg,three\r\n",
}  # fmt: skip


@pytest.mark.parametrize("text", CSV.values(), ids=CSV)
def test_csv_in_its_many_kinds(save, read, text):
    path = save(text, "captions.csv")
    assert read(path) == {"a.jpg": ("train", ["one", "three"]), "b.jpg": ("train", ["two, and"])}


def test_columns_of_unusual_names(save, read):
    path = save("photo,says\na.jpg,one\n", "c.csv")
    with pytest.raises(UserError, match=r"has no header .*first line is 'photo,says'"):
        read(path)
    columns = folder.Columns("photo", "says")
    assert read(path, columns=columns) == {"a.jpg": ("train", ["one"])}


def test_json_lines(save, read):
    rows = [
        {"image": "a.jpg", "captions": ["one", "two\u2028lines"], "split": "test"},
        {"file_name": "b.jpg", "text": "three"},
        {"filename": "b.jpg", "caption": "four", "more": {"x": 1}},
    ]
    path = save("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", "c.jsonl")
    assert read(path) == {
        "a.jpg": ("test", ["one", "two\u2028lines"]),
        "b.jpg": ("train", ["three", "four"]),
    }


def test_the_imagefolder_of_hugging_face(save, read):
    save("file_name,text\na.png,one\n", "train/metadata.csv")
    save('{"file_name": "a.png", "text": "two"}\n', "validation/metadata.jsonl")
    assert read() == {"train/a.png": ("train", ["one"]), "validation/a.png": ("val", ["two"])}
    save("file_name,text,split\nx.png,three,test\n", "metadata.csv")
    assert read()["x.png"] == ("test", ["three"])


def test_a_folder_without_captions_says_what_to_give(read):
    with pytest.raises(UserError, match=r"no metadata\.csv or metadata\.jsonl; name the file with"):
        read()


def test_images_that_no_caption_mentions_are_told(save, read):
    for name in ("a.jpg", "sub/b.PNG", "notes.txt"):
        save("x", name)
    problems = Problems()
    read(save("image,caption\n./a.jpg,one\n", "c.csv"), problems=problems)
    assert problems.lines() == ["1 images without captions: sub/b.PNG"]


def test_empty_captions_and_captions_that_are_not_text(save, read):
    problems = Problems()
    rows = [{"image": "a.jpg", "captions": ["good", " ", 7, None, "\ud83d"]}]
    path = save(json.dumps(rows[0]) + "\n", "c.jsonl")
    assert read(path, problems=problems) == {"a.jpg": ("train", ["good"])}
    assert problems.counts == {"empty captions": 1, "captions that are not text": 3}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", 'image,caption\na.jpg,"two and th', "line 2: .*is the file cut off"),
        ("c.csv", "image,caption\nb.j", "line 2: has 1 columns, the header 2"),
        ("c.csv", "image,caption\na.jpg,one, two\n", "line 2: has 3 columns.*quote captions"),
        ("c.csv", "image,caption\na.jpg,one\n" + 9 * "x\n", "only 1 of 10 rows can be used"),
        ("c.csv", "a,b,c\n1,2,3\n", "has no header that names an image and a caption"),
        ("c.csv", "image,caption\n,one\n", "line 2: the image is ''"),
        ("c.csv", "image,caption\n", "no captions; give a CSV or JSON"),
        ("c.csv", "", "no captions; give a CSV or JSON"),
        ("c.jsonl", '{"image": "b', "line 1: is not valid JSON"),
        ("c.jsonl", '[{"image": "b"', "is not valid JSON"),
        ("c.jsonl", "[1]\n", "entry 0: holds 1, not an object"),
        ("c.jsonl", '{"picture": "a.jpg", "caption": "x"}\n', "no image.*it has picture, caption"),
        ("c.jsonl", '{"image": 3, "caption": "x"}\n', "the image is 3"),
        ("c.jsonl", '{"image": "a", "image_id": [], "caption": "x"}\n', "no number and no text"),
        ("c.jsonl", '{"image": "c", "image_id": 1.5, "caption": "x"}\n', "1.5, which is no whole"),
        ("c.jsonl", '{"images": [], "annotations": []}', "use `prepare coco`"),
        ("c.jsonl", '{"a.jpg": "one",\n"b.jpg": "two"}', "one JSON object with the keys"),
        ("c.json", '[{"image": "a.jpg", "conversations": []}]', "LLaVA's instructions"),
        (
            "c.csv",
            "image,caption,split\na.jpg,one,train\na.jpg,two,val\n",
            "split of 'a.jpg' is 'val', but 'train' in .*line 2",
        ),
        (
            "c.csv",
            "image,caption,image_id\na.jpg,one,1\nb.jpg,two,1\n",
            "'b.jpg' has the id 1 of 'a.jpg'",
        ),
    ],
)  # fmt: skip
def test_broken_files_are_one_clear_line(save, read, name, text, message):
    with pytest.raises(UserError, match=message) as error:
        read(save(text, name))
    assert "\n" not in str(error.value) and name in str(error.value)


def test_bytes_that_are_no_text(tmp_path, read):
    path = tmp_path / "c.csv"
    path.write_bytes(b"image,caption\na.jpg,caf\xe9\n")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        read(path)
    with pytest.raises(UserError, match="there is no file"):
        read(tmp_path / "gone.csv")


def test_splits_that_contradict_each_other(save, read):
    path = save("image,caption,split\na.jpg,one,val\n", "c.csv")
    with pytest.raises(UserError, match="names the split 'val', but --val and --test draw"):
        read(path, shares=Shares(0.1))
    with pytest.raises(UserError, match="--split=test makes one split of all images, but the file"):
        read(path, split="test")
    for val, test in ((0.6, 0.4), (-0.1, 0), (float("nan"), 0)):
        with pytest.raises(UserError, match="together below 1"):
            Shares(val, test)


def test_drawn_splits_are_stable_and_near_their_shares(save, read):
    names = [f"{i}.jpg" for i in range(4000)]

    def drawn(some):
        rows = "".join(f"{name},a\n" for name in some)
        return read(save("image,caption\n" + rows, "c.csv"), shares=Shares(0.05, 0.1))

    whole, part = drawn(names), drawn(names[::-7])
    assert all(whole[name] == value for name, value in part.items())
    counts = [sum(split == wanted for split, _ in whole.values()) for wanted in ("val", "test")]
    # Binomial: 5 standard deviations around 200 and 400.
    assert abs(counts[0] - 200) < 5 * 13.8 and abs(counts[1] - 400) < 5 * 19


def test_ids_made_from_names():
    """31 bits: of 100,000 names some meet, and are told apart whatever the order."""
    names = [f"{i}.jpg" for i in range(100_000)]
    made = ids.numbered(names)
    assert len(set(made.values())) == 100_000
    assert min(made.values()) >= 0 and max(made.values()) < 2**31
    assert ids.numbered(names[::-1]) == made
    fewer = ids.numbered(names[:50_000])
    assert sum(made[name] != fewer[name] for name in fewer) <= 5


def test_flickr_token_files(save):
    text = (
        "1000268201_693b08cb0e.jpg#0\tA child in a pink dress .\n"
        "1000268201_693b08cb0e.jpg#1\tA girl # 2 going into a building .\n"
        "1001773457.jpg#0\tTwo dogs .\n"
    )
    path = save(text, "Flickr8k.token.txt")
    problems = Problems()
    reading = flickr.read_file(path, shares=Shares(), problems=problems)
    assert [(e.names[0], len(e.captions)) for e in reading.entries] == [
        ("1000268201_693b08cb0e.jpg", 2),
        ("1001773457.jpg", 1),
    ]
    assert reading.entries[0].captions[1][1] == "A girl # 2 going into a building ."
    assert reading.ids == "" and not reading.notes
    cut = save(text[:-4], "cut.txt")
    assert "is it whole" in flickr.read_file(cut, shares=Shares(), problems=problems).notes[0]
    for broken, message in (("a.jpg A dog\n", "expected lines of NAME.jpg#0"), ("", "no captions")):
        with pytest.raises(UserError, match=message):
            flickr.read_file(save(broken, "b.txt"), shares=Shares(), problems=problems)


def test_karpathys_flickr_file_has_ids_of_its_own(save):
    images = [
        {
            "imgid": 7,
            "split": "test",
            "filename": "1.jpg",
            "sentences": [{"raw": "a", "sentid": 3}],
        }
    ]
    path = save({"dataset": "flickr30k", "images": images}, "dataset_flickr30k.json")
    reading = flickr.read_file(path, shares=Shares(), problems=Problems())
    assert reading.ids == "flickr30k" and reading.entries[0].image_id == 7
    with pytest.raises(UserError, match="names the split of each image"):
        flickr.read_file(path, shares=Shares(val=0.1), problems=Problems())


def nocaps_file(domains):
    return {
        "licenses": [],
        "images": [
            {"id": i, "file_name": f"{i:016x}.jpg", "open_images_id": f"{i:016x}", "domain": domain}
            for i, domain in enumerate(domains)
        ],
        "annotations": [
            {"id": 10 * i + k, "image_id": i, "caption": f"text {k}"}
            for i in range(len(domains))
            for k in range(10)
        ],
    }


def test_nocaps_keeps_its_domains(save):
    domains = ["in-domain", "near-domain", "out-domain", "near-domain"]
    path = save(nocaps_file(domains), "nocaps_val_4500_captions.json")
    reading = coco.read_nocaps(path, problems=Problems())
    assert [e.domain for e in reading.entries] == domains
    assert {e.split for e in reading.entries} == {"val"} and reading.ids == "nocaps"
    assert all(len(e.captions) == 10 for e in reading.entries)
    other = save(nocaps_file(["in-domain", ""]), "other.json")
    with pytest.raises(UserError, match="1 of 2 images have no domain of in-domain"):
        coco.read_nocaps(other, problems=Problems())
