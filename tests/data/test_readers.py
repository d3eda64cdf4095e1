"""Flickr, nocaps and anyone's own folder: files to entries, whole and broken."""

import csv
import io
import json

import pytest

from har_jax import ids
from har_jax.data.entries import Problems
from har_jax.data.readers import coco, flickr, folder
from har_jax.data.readers.shares import Shares
from har_jax.errors import UserError

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


LISTS = {
    "JSON": '["a dog", "it\'s a cat"]',
    "Python": "['a dog', \"it's a cat\"]",
    "NumPy": "['a dog' \"it's a cat\"]",
    "NumPy over lines": "['a dog'\n \"it's a cat\"]",
}


@pytest.mark.parametrize("cell", LISTS.values(), ids=LISTS)
def test_a_cell_that_holds_a_list(save, read, cell):
    """As the Flickr30k table on the hub has it."""
    rows = [
        ("raw", "sentids", "split", "filename", "img_id"),
        (cell, "[0, 1]", "train", "a.jpg", 0),
    ]
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    path = save(file.getvalue(), "flickr_annotations_30k.csv")
    assert read(path) == {"a.jpg": ("train", ["a dog", "it's a cat"])}


def test_what_pandas_writes_for_nothing_is_no_caption(save, read):
    problems = Problems()
    cells = ["nan", "NaN", "None", "null", "<NA>", "", "none", "a nan", '"[""a"", null]"', "[]"]
    text = "image,caption\n" + "".join(f"{i}.jpg,{cell}\n" for i, cell in enumerate(cells))
    found = read(save(text, "c.csv"), problems=problems)
    assert [texts for _, texts in found.values()] == [["none"], ["a nan"], ["a"]]
    assert problems.counts["captions that are not text"] == 7
    assert problems.counts["empty captions"] == 1
    # JSON has a value of its own for nothing.
    found = read(save('{"image": "a.jpg", "caption": "a null"}\n', "c.jsonl"))
    assert found == {"a.jpg": ("train", ["a null"])}


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["c.json", "c.jsonl", "c.csv", "c.txt"])
def test_json_is_told_by_what_is_in_it(save, read, name, bom):
    """BLIP's and LAVIS' lists, and JSON lines, whatever the suffix."""
    rows = [
        {"image": "a.jpg", "caption": "one", "image_id": "coco_9"},
        {"image": "b.jpg", "caption": ["two", "three"], "image_id": "coco_7"},
        {"image": "a.jpg", "caption": "four", "image_id": "coco_9"},
    ]
    expected = {"a.jpg": ("train", ["one", "four"]), "b.jpg": ("train", ["two", "three"])}
    for text in (
        json.dumps(rows),
        json.dumps(rows, indent=2),
        "\n".join(map(json.dumps, rows)),
    ):
        assert read(save(bom + text, name)) == expected


def test_malformed_rows_are_dropped_in_every_format(save, read):
    table = 'image,caption,image_id\na.jpg,one,1\nb.jpg,"two,2\nc.jpg,three, too,3\n,four,4\n'
    table += "d.jpg,five,1.5\ne.jpg,six,6\nf.jpg,seven\n"
    rows = [{"image": "a.jpg", "caption": "one", "image_id": 1}, 7, {"image": "b.jpg"}]
    rows += [{"image": 3, "caption": "x"}, {"image": "d.jpg", "caption": "x", "image_id": 1.5}]
    rows += [{"image": "e.jpg", "caption": "x", "split": 2}]
    rows += [{"image": "e.jpg", "caption": "six", "image_id": 6}]
    lines = "\n".join(map(json.dumps, rows)) + '\n{"image": "f.jpg", "capt\n' + "[" * 100_000
    for text, count in ((table, 5), (json.dumps(rows), 5), (lines, 7)):
        problems = Problems()
        found = read(save(text, "captions"), problems=problems)
        assert found == {"a.jpg": ("train", ["one"]), "e.jpg": ("train", ["six"])}
        assert problems.counts == {"malformed rows": count}
        assert "captions line" in problems.lines()[0] or "captions entry" in problems.lines()[0]
        with pytest.raises(UserError, match="strict drops nothing") as error:
            problems.refuse()
        assert len(str(error.value)) < 1000


def test_a_stray_quote_takes_one_row_with_it(save, read):
    lines = [f"{i}.jpg,text {i}" for i in range(300)]
    lines[7] = '7.jpg,"text 7'
    problems = Problems()
    found = read(save("image,caption\n" + "\n".join(lines) + "\n", "c.csv"), problems=problems)
    assert len(found) == 299 and problems.counts == {"malformed rows": 1}
    signs = 'image,caption\na.jpg,"Stop" says a sign\nb.jpg,a "big" dog\n'
    assert read(save(signs, "c.csv"))["a.jpg"] == ("train", ['"Stop" says a sign'])
    two = 'image,caption\na.jpg,"one\nline, two"\nb.jpg,three\n'
    assert read(save(two, "c.csv"))["a.jpg"] == ("train", ["one\nline, two"])
    huge = "image,caption\na.jpg," + "x" * 200_000 + "\nb.jpg,three\n"  # csv's own limit
    assert read(save(huge, "c.csv"), problems=problems) == {"b.jpg": ("train", ["three"])}


def test_absolute_names_in_the_folder_are_those_of_the_folder(save, read, tmp_path):
    save("x", "sub/a.jpg")
    save("x", "b.jpg")
    rows = f"image,caption\n{tmp_path}/sub/a.jpg,one\n{tmp_path}/sub/../b.jpg,two\n"
    problems = Problems()
    found = read(save(rows, "c.csv"), problems=problems)
    assert found == {"sub/a.jpg": ("train", ["one"]), "b.jpg": ("train", ["two"])}
    problems.refuse()


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
    problems = Problems()
    torn = save(text + "a line\n" + "2.jpg#0\tA cat .\r\n", "torn.txt")
    assert len(flickr.read_file(torn, shares=Shares(), problems=problems).entries) == 3
    assert problems.lines() == ["1 malformed rows: line 4 is 'a line'"]
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
