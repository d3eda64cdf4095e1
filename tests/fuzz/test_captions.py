"""Captions files of every format, as they come and damaged: read, or refused in a line."""

from __future__ import annotations

import csv
import io
import json
import pathlib
import random
import re
from typing import Any

from PIL import Image

from har_jax.data.entries import SPLIT_NAME, Problems, Reading, check_unique
from har_jax.data.readers import coco, flickr, folder
from har_jax.data.readers.shares import Shares
from har_jax.prepare import main
from tests.fuzz import hostile
from tests.fuzz.harness import LONGEST_LINE, Case, attempt, command

NAMES = ["a.jpg", "b.png", "sub/c.jpg", "é.jpg"]
IDS = [1, "2", 3.0, "img_0", 2**40, "000004", 1.5, None, -1, "x" * 2000, True, []]


def texts(rng: random.Random) -> str:
    good = ["a dog on grass", "two cats", 'a sign "stop"', "it's, well, here"]
    return rng.choice(good) if rng.random() < 0.6 else hostile.text(rng)


def name(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.85 else hostile.text(rng)


def some_id(rng: random.Random, usual: int, odd: float = 0.2) -> Any:
    return usual if rng.random() >= odd else rng.choice([*IDS, hostile.value(rng)])


def coco_file(rng: random.Random, odd: float = 0.2) -> dict[str, Any]:
    images = [{"id": some_id(rng, i, odd), "file_name": n} for i, n in enumerate(NAMES)]
    annotations = [
        {"id": rng.choice([k, k % 2, None]), "image_id": images[k % 4]["id"], "caption": texts(rng)}
        for k in range(8)
    ]
    return {"images": images, "annotations": annotations}


def nocaps_file(rng: random.Random) -> dict[str, Any]:
    whole = coco_file(rng)
    for image in whole["images"]:
        image["domain"] = rng.choice(["in-domain", "near-domain", "out-domain", "x"])
    return whole


def karpathy_file(rng: random.Random, odd: float = 0.2) -> dict[str, Any]:
    images = [
        {
            rng.choice(["cocoid", "imgid"]): some_id(rng, i, odd),
            "filename": n,
            "filepath": rng.choice(["", "val2014", "../x"]),
            "split": rng.choice(["train", "restval", "val", "test", "Test 1"]),
            "sentences": [{"raw": texts(rng), "sentid": k} for k in range(3)],
        }
        for i, n in enumerate(NAMES)
    ]
    return {"dataset": "coco", "images": images}


def objects(rng: random.Random) -> list[dict[str, Any]]:
    found = []
    for i in range(rng.choice([1, 4, 12])):
        image = name(rng)
        number = NAMES.index(image) if image in NAMES else i + 10
        row: dict[str, Any] = {rng.choice(["image", "file_name", "img"]): image}
        row[rng.choice(["caption", "text"])] = rng.choice([texts(rng), [texts(rng), texts(rng)]])
        if rng.random() < 0.5:
            row["image_id"] = some_id(rng, number, 0.1)
        if rng.random() < 0.1:
            row["split"] = rng.choice(["train", "val", "dev", "Tuning", 3])
        found.append(row)
    return found


def table(rng: random.Random) -> str:
    file = io.StringIO()
    columns = rng.sample(["image", "caption", "image_id", "split", "source"], rng.choice([2, 4, 5]))
    columns = list(dict.fromkeys(["image", "caption", *columns]))
    rng.shuffle(columns)
    how: Any = {"quoting": rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])}
    how |= {"lineterminator": rng.choice(["\n", "\r\n", "\r"]), "delimiter": rng.choice(",;\t|")}
    out = csv.writer(file, **how)
    out.writerow(columns)
    for i in range(rng.choice([1, 5, 30])):
        image = name(rng)
        number = NAMES.index(image) if image in NAMES else i
        row = {"image": image, "caption": texts(rng), "image_id": some_id(rng, number, 0.02)}
        row |= {"split": rng.choice(["train", *[""] * 9, "nan"]), "source": hostile.text(rng)}
        if rng.random() < 0.1:
            row["caption"] = repr([texts(rng), texts(rng)])
        out.writerow([row[column] for column in columns][: rng.choice([9, 9, 9, 9, 1])])
    return file.getvalue()


def tokens(rng: random.Random) -> str:
    lines = [f"{name(rng)}#{k % 5}\t{texts(rng)}" for k in range(8)]
    return "\n".join([*lines, hostile.text(rng)])


def content(rng: random.Random, kind: str) -> bytes:
    """A captions file: mostly of odd values, else of damaged bytes."""
    if kind in ("coco", "nocaps", "karpathy", "array"):
        make = {"coco": coco_file, "nocaps": nocaps_file, "karpathy": karpathy_file}
        whole = objects(rng) if kind == "array" else make[kind](rng)
        if rng.random() < 0.4:
            return json.dumps(whole).encode(errors="surrogatepass")
        return hostile.json_bytes(rng, whole)
    if kind == "lines":
        rows = [json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in objects(rng)]
        if rng.random() < 0.3:
            rows.insert(rng.randrange(len(rows) + 1), json.dumps(hostile.value(rng)))
        data = "\n".join(rows).encode(errors="surrogatepass")
    else:
        data = (table if kind == "table" else tokens)(rng).encode(errors="replace")
    data = rng.choice([b"", b"", b"\xef\xbb\xbf"]) + data
    return data if rng.random() < 0.5 else hostile.damaged(rng, data)


KINDS = ("coco", "nocaps", "karpathy", "array", "lines", "table", "tokens")


def check(reading: Reading, problems: Problems) -> None:
    """What the rest of `prepare` relies on."""
    check_unique(reading.entries)
    numbers = [entry.image_id for entry in reading.entries]
    assert len(set(numbers)) == len(numbers) and all(0 <= n < 2**31 for n in numbers)
    for entry in reading.entries:
        assert entry.captions and all(text.strip() for _, text in entry.captions)
        "".join([*entry.names, entry.filename, *(text for _, text in entry.captions)]).encode()
    ids = [(e.split, i) for e in reading.entries for i, _ in e.captions]
    assert len(set(ids)) == len(ids) and all(i is not None and 0 <= i < 2**63 for _, i in ids)
    for line in problems.lines():
        assert line.isprintable()
    assert len(problems.told()) < LONGEST_LINE
    assert all(re.fullmatch(SPLIT_NAME, entry.split) for entry in reading.entries)


def draw(rng: random.Random, folder_: pathlib.Path) -> Case:
    kind = rng.choice(KINDS)
    path = folder_ / rng.choice(["c.csv", "c.json", "c.jsonl", "c.txt"])
    path.write_bytes(content(rng, kind))

    def read() -> None:
        problems = Problems()
        if kind == "coco":
            reading = coco.read_files([path], problems=problems)
        elif kind == "nocaps":
            reading = coco.read_nocaps(path, problems=problems)
        elif kind in ("karpathy", "tokens"):
            reading = flickr.read_file(path, shares=Shares(), problems=problems)
        else:
            reading = folder.read_folder(folder_, [path], shares=Shares(), problems=problems)
        check(reading, problems)

    return Case(read)


def test_captions_files(tmp_path, record_property):
    attempt("captions files", 4000, draw, tmp_path, record_property)


def draw_whole(rng: random.Random, folder_: pathlib.Path) -> Case:
    """A table or objects of odd values, of which no caption may go without a word."""
    given = []
    for _ in range(rng.choice([3, 12, 40])):
        odd = rng.random() < 0.2
        caption = texts(rng) if odd else "a dog"
        given.append((name(rng), caption if not caption.startswith("[") else "a cat"))
    path = folder_ / "captions"
    if rng.random() < 0.5:
        rows = [json.dumps({"image": image, "caption": caption}) for image, caption in given]
        path.write_text("\n".join(rows) if rng.random() < 0.5 else f"[{','.join(rows)}]")
    else:
        given = [(image.replace("\0", ""), c.replace("\0", "")) for image, c in given]
        with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
            csv.writer(file).writerows([("image", "caption"), *given])

    def read() -> None:
        problems = Problems()
        reading = folder.read_folder(folder_, [path], shares=Shares(), problems=problems)
        kept = sum(len(entry.captions) for entry in reading.entries)
        kinds = ("malformed rows", "captions that are not text", "empty captions")
        assert kept + sum(problems.counts[kind] for kind in kinds) == len(given), problems.counts

    return Case(read)


def test_no_caption_goes_without_a_word(tmp_path, record_property):
    attempt("captions kept", 1000, draw_whole, tmp_path, record_property)


def draw_command(rng: random.Random, folder_: pathlib.Path) -> Case:
    images = folder_ / "images"
    (images / "sub").mkdir(parents=True)
    for number, place in enumerate(NAMES):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(images / place)
    Image.new("RGB", (8, 8)).save(folder_ / "outside.png")
    reader = rng.choice(["folder", "folder", "coco", "flickr", "nocaps"])
    kinds = {"folder": ["table", "lines", "array"], "flickr": ["tokens", "karpathy"]}
    kind = rng.choice(kinds.get(reader, [reader, "karpathy"]))
    path, out = folder_ / "captions", folder_ / "out"
    path.write_bytes(content(rng, kind).replace(b"two cats", b"../outside.png"))
    argv = [reader, f"--images={images}", f"--captions={path}", f"--out={out}"]
    argv += ["--strict"] if rng.random() < 0.2 else []
    return Case(lambda: command(main, argv), [out])


def test_prepare(tmp_path, record_property, monkeypatch):
    monkeypatch.setenv("HAR_PROGRESS", "0")
    attempt("prepare", 200, draw_command, tmp_path, record_property)
