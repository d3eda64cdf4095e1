"""pycocoevalcap itself: the tokenizer and the scorers that the published figures come from.

Its tokenizer, METEOR and SPICE are Java programs. `Unavailable` says why something cannot run here.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import pathlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from har_jax.metrics.word_lists import (
    Words,
    refuse_text_of_list,
    refuse_texts,
    refuse_texts_of_images,
)
from har_jax.text import ptb

Result = tuple[float, dict[int, float]]
"""(corpus value, {image id: value})."""

METEOR_SECONDS = 900.0
"""After which METEOR is given up."""

_SPICE_MODELS = "stanford-corenlp-3.6.0-models.jar"


class Unavailable(Exception):
    """A metric cannot run here; the text says why."""


def words(
    references: Mapping[int, Sequence[str]], predictions: Mapping[int, str]
) -> tuple[dict[int, list[list[str]]], dict[int, list[str]]]:
    """The words of all texts by pycocoevalcap's own PTBTokenizer, in the order of `references`.

    Raises:
      Unavailable: no pycocoevalcap, no Java, or Java failed.
    """
    for group in references.values():
        refuse_text_of_list(group)
    flat = iter(_tokenized([text for group in references.values() for text in group]))
    truth = {i: list(itertools.islice(flat, len(group))) for i, group in references.items()}
    own = _tokenized([predictions[i] for i in references])
    return truth, dict(zip(references, own, strict=True))


def _tokenized(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, by one call of Java.

    As `PTBTokenizer.tokenize` does it, which gives the lines that come back to images without
    counting them: a line break in a caption moves all captions after it by one.
    """
    place = _place() / "tokenizer"
    try:
        from pycocoevalcap.tokenizer import ptbtokenizer as published

        command = ["java", "-cp", published.STANFORD_CORENLP_3_4_1_JAR]
        command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        with tempfile.NamedTemporaryFile() as file:
            file.write("\n".join(map(ptb.one_line, texts)).encode())
            file.flush()
            command.append(file.name)
            ran = subprocess.run(command, cwd=place, capture_output=True, check=True)
        lines = ran.stdout.decode().split("\n")
    except Exception as error:  # a Java program fails in many ways
        raise Unavailable(f"its tokenizer failed: {type(error).__name__}: {error}") from error
    if len(lines) != len(texts):
        raise Unavailable(f"its tokenizer gave {len(lines)} lines for {len(texts)} captions")
    dropped = frozenset(published.PUNCTUATIONS)
    kept = (" ".join(w for w in line.rstrip().split(" ") if w not in dropped) for line in lines)
    return [line.split(" ") if line else [] for line in kept]


def scores(
    metric: str, references: Mapping[int, Sequence[Words]], predictions: Mapping[int, Words]
) -> Iterator[tuple[str, Result]]:
    """(key, result) of CIDEr, Bleu (four keys) or ROUGE_L, by pycocoevalcap's scorers."""
    _refuse_texts(references, predictions)
    truth, results = _as_texts(references, predictions)
    if metric == "CIDEr":
        from pycocoevalcap.cider.cider import Cider

        yield "CIDEr", _by_image(truth, *Cider().compute_score(truth, results))
    elif metric == "ROUGE_L":
        from pycocoevalcap.rouge.rouge import Rouge

        yield "ROUGE_L", _by_image(truth, *Rouge().compute_score(truth, results))
    else:
        from pycocoevalcap.bleu.bleu import Bleu

        values: Any = Bleu(4).compute_score(truth, results, verbose=0)
        for k, (value, per_image) in enumerate(zip(*values, strict=True), 1):
            yield f"Bleu_{k}", _by_image(truth, value, per_image)


def meteor(
    references: Mapping[int, Sequence[Words]],
    predictions: Mapping[int, Words],
    *,
    seconds: float = METEOR_SECONDS,
) -> Result:
    """METEOR, of a Java program that is ended after so many seconds.

    Raises:
      Unavailable: no pycocoevalcap, no Java, it failed, or it took longer.
    """
    _refuse_texts(references, predictions)
    if not (_place() / "meteor" / "meteor-1.5.jar").exists():
        raise Unavailable("meteor-1.5.jar is missing from pycocoevalcap")
    try:
        from pycocoevalcap.meteor.meteor import Meteor

        truth, results = _as_texts(references, predictions)
        # What stands between texts there; it takes them out of captions only.
        truth = {i: [text.replace("|||", "") for text in group] for i, group in truth.items()}
        scorer = Meteor()
        late = threading.Timer(seconds, scorer.meteor_p.kill)  # whoever reads it gets no answer
        late.daemon = True
        late.start()
        try:
            value, values = scorer.compute_score(truth, results)
        except Exception as error:
            if late.finished.is_set():
                raise Unavailable(f"METEOR took more than {seconds:g} s") from error
            raise
        finally:
            late.cancel()
            if scorer.lock.locked():  # it failed: its destructor would wait for ever, and complain
                scorer.lock.release()
                scorer.meteor_p.kill()
                scorer.meteor_p.communicate()
    except Unavailable:
        raise
    except Exception as error:  # see `_tokenized`
        raise Unavailable(f"METEOR failed: {type(error).__name__}: {error}") from error
    return _by_image(truth, value, values)


def spice(references: Mapping[int, Sequence[Words]], predictions: Mapping[int, Words]) -> Result:
    """SPICE.

    Raises:
      Unavailable: no pycocoevalcap, no Java, its models are absent, or it failed.
    """
    _refuse_texts(references, predictions)
    if not (_place() / "spice" / "lib" / _SPICE_MODELS).exists():
        # pycocoevalcap would start to download 400 MB here.
        raise Unavailable(f"SPICE's models ({_SPICE_MODELS}) are not in pycocoevalcap/spice/lib")
    try:
        from pycocoevalcap.spice.spice import Spice

        truth, results = _as_texts(references, predictions)
        value, values = Spice().compute_score(truth, results)
    except Exception as error:  # see `_tokenized`
        raise Unavailable(f"SPICE failed: {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise Unavailable(f"SPICE gave {value}")
    per_image = (float(scores["All"]["f"]) for scores in values)
    return float(value), dict(zip(sorted(truth), per_image, strict=True))


def _place() -> pathlib.Path:
    """Where pycocoevalcap is, given that Java is there too."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("pycocoevalcap is not installed (pip install pycocoevalcap)")
    if shutil.which("java") is None:
        raise Unavailable("Java is not installed")
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def _refuse_texts(
    references: Mapping[int, Sequence[Words]], predictions: Mapping[int, Words]
) -> None:
    refuse_texts_of_images(references)
    refuse_texts(predictions.values())


def _as_texts(
    references: Mapping[int, Sequence[Words]], predictions: Mapping[int, Words]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return (
        {i: [" ".join(words) for words in captions] for i, captions in references.items()},
        {i: [" ".join(predictions[i])] for i in references},
    )


def _by_image(images: Mapping[int, Any], value: Any, values: Iterable[Any]) -> Result:
    return float(value), dict(zip(images, map(float, values), strict=True))
