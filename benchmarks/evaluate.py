"""Scoring a file of captions: `har_jax.evaluate --predictions` against pycocoevalcap.

    python -m benchmarks.evaluate [--rounds=5]

One caption of each of the 5,000 images of COCO val2017 is held out as the prediction, the others
are its references. All sides are whole processes, from the start of Python to the printed scores,
in turns; medians of the rounds, in seconds of the clock and of the processors. Three sides:

    pycocoevalcap     its own tokenizer (two runs of a Java program), Bleu, Rouge and Cider
    ... no tokenizer  the same on text that is only lower-cased and split at spaces: other scores,
                      because punctuation stays; what its scorers alone take
    har_jax.evaluate  words and the same metrics, and besides 95 % intervals, health and bias
                      figures and the files it writes

HAR_SHARED names the directory with data/coco_val2017_captions.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
METRICS = ("CIDEr", "Bleu_4", "ROUGE_L")


def official(predictions: str, references: str, out: str, tokenize: bool) -> None:
    """The other sides, run in a process of their own: scores into a file in `out`."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    truth: dict[int, list] = {}
    for annotation in json.loads(pathlib.Path(references).read_text())["annotations"]:
        truth.setdefault(annotation["image_id"], []).append(annotation)
    written = {row["image_id"]: [row] for row in json.loads(pathlib.Path(predictions).read_text())}
    if tokenize:
        tokenizer = PTBTokenizer()
        truth, written = tokenizer.tokenize(truth), tokenizer.tokenize(written)
    else:
        truth, written = (
            {i: [" ".join(row["caption"].lower().split()) for row in rows] for i, rows in x.items()}
            for x in (truth, written)
        )
    scores = {
        "Bleu_4": Bleu(4).compute_score(truth, written, verbose=0)[0][3],
        "ROUGE_L": float(Rouge().compute_score(truth, written)[0]),
        "CIDEr": float(Cider().compute_score(truth, written)[0]),
    }
    name = "official.json" if tokenize else "untokenized.json"
    pathlib.Path(out, name).write_text(json.dumps(scores))


def hold_out(folder: pathlib.Path) -> tuple[str, str, int]:
    """Writes predictions and references; returns both paths and the number of images."""
    shared = pathlib.Path(os.environ.get("HAR_SHARED", ROOT.parent / "shared"))
    source = shared / "data" / "coco_val2017_captions.json"
    if not source.exists():
        raise SystemExit(f"{source} is missing; set HAR_SHARED to the directory that has data/")
    value = json.loads(source.read_text())
    held: dict[int, str] = {}
    kept = []
    for annotation in value["annotations"]:
        if annotation["image_id"] in held:
            kept.append(annotation)
        else:
            held[annotation["image_id"]] = annotation["caption"]
    predictions, references = folder / "predictions.json", folder / "references.json"
    rows = [{"image_id": i, "caption": text} for i, text in held.items()]
    predictions.write_text(json.dumps(rows))
    references.write_text(json.dumps({**value, "annotations": kept}))
    return str(predictions), str(references), len(rows)


def timed(command: list[str], bytecode: str) -> tuple[float, float]:
    """(seconds of the clock, of the processors); `bytecode` is a directory to keep some in."""
    # As an installed package runs: compiled to bytecode once (the first round), even where the
    # shell forbids it, so that each start would compile the files of a checkout.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env = kept | {"PYTHONPYCACHEPREFIX": bytecode}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, busy


def cpu() -> str:
    """The name that the machine gives its processor."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--official", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--no-tokenizer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.official:
        predictions, references, out = args.official
        official(predictions, references, out, not args.no_tokenizer)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        predictions, references, n_images = hold_out(folder)
        files = [f"--predictions={predictions}", f"--references={references}"]
        out = folder / "out"
        chosen = "--metrics=CIDEr,Bleu,ROUGE_L"
        ours = ["-m", "har_jax.evaluate", *files, f"--out={out}", chosen]
        theirs = ["-m", "benchmarks.evaluate", "--official", predictions, references, name]
        sides = {
            "pycocoevalcap": theirs,
            "... no tokenizer": [*theirs, "--no-tokenizer"],
            "har_jax.evaluate": ours,
        }
        times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for number in range(args.rounds + 1):
            for side, command in sides.items():
                seconds = timed([sys.executable, *command], str(folder / "bytecode"))
                if number:  # the first round compiles and fills the disk cache
                    times[side].append(seconds)
        scores = {
            "pycocoevalcap": json.loads((folder / "official.json").read_text()),
            "... no tokenizer": json.loads((folder / "untokenized.json").read_text()),
            "har_jax.evaluate": json.loads((out / "scores.json").read_text()),
        }
    print(f"{n_images} captions, {cpu()}, Python {platform.python_version()}, whole process")
    head = "".join(f"{name:>10}" for name in METRICS)
    print(f"{'':18}{'median s':>10}{'min s':>8}{'busy s':>8}{head}")
    medians = {}
    for side, seconds in times.items():
        clock, busy = zip(*seconds, strict=True)
        medians[side] = statistics.median(clock)
        values = "".join(f"{scores[side][name]:10.6f}" for name in METRICS)
        print(
            f"{side:18}{medians[side]:10.2f}{min(clock):8.2f}{statistics.median(busy):8.2f}{values}"
        )
    *others, ours = medians.values()
    print(
        f"ours takes 1/{others[0] / ours:.1f} of the time, 1/{others[1] / ours:.1f} of the scorers'"
    )
    worst = max(abs(scores["pycocoevalcap"][m] - scores["har_jax.evaluate"][m]) for m in METRICS)
    print(f"largest difference of a score: {worst:.1e}")


if __name__ == "__main__":
    main()
