"""Files that `python -m har_jax.evaluate` reads, and the command on them."""

import json
from collections.abc import Callable

from har_jax.evaluate import main

CAPTIONS = {
    1: ["A red circle above a square.", "There is a red circle.", "red circle over a square"],
    2: ["Two blue squares side by side.", "A pair of blue squares", "blue squares"],
    3: ["A green star on a striped ground.", "One green star", "a star that is green"],
    4: ["A yellow ring.", "a large yellow ring in the middle", "yellow ring"],
}


def coco(captions=CAPTIONS):
    rows = [(i, text) for i, texts in captions.items() for text in texts]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in captions],
        "annotations": [
            {"id": k, "image_id": i, "caption": text} for k, (i, text) in enumerate(rows)
        ],
    }


def karpathy():
    splits = {1: "test", 2: "test", 3: "restval", 4: "train"}
    return {
        "dataset": "coco",
        "images": [
            {
                "cocoid": i,
                "imgid": 0,
                "split": splits[i],
                "filepath": "val2014",
                "filename": f"{i}.jpg",
                "sentences": [{"raw": text, "tokens": []} for text in texts],
            }
            for i, texts in CAPTIONS.items()
        ],
    }


def results(ids=CAPTIONS):
    return [{"image_id": i, "caption": CAPTIONS[i][1]} for i in ids]


def evaluates(tmp_path, capsys) -> Callable:
    """Writes both files, runs the command and returns (exit code, stdout, stderr, out dir)."""

    def call(predictions, references, *flags):
        for name, value in (("results.json", predictions), ("captions.json", references)):
            if value is not None:
                text = value if isinstance(value, str) else json.dumps(value)
                (tmp_path / name).write_text(text)
        given = [f"--predictions={tmp_path / 'results.json'}"]
        given.append(f"--references={tmp_path / 'captions.json'}")
        out = tmp_path / "out"
        code = main([*given, f"--out={out}", *flags])
        printed = capsys.readouterr()
        return code, printed.out, printed.err, out

    return call
