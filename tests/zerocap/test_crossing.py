"""From GPT-2's tokens to CLIP's: the table and the groups give what tokenising each text gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_jax.text.tokenizer import load_clip_tokenizer, load_tokenizer
from har_jax.zerocap.judge import Crossing, Wholes
from har_jax.zerocap.vocabulary import Vocabulary
from tests.zerocap.worlds import make_world


@pytest.fixture(scope="module", params=["miniature", "published"])
def crossing(request, tmp_path_factory):
    if request.param == "miniature":
        world = make_world(tmp_path_factory.mktemp("world"), seed=3)
        clip, lm = world.clip, world.gpt2
    else:
        folder = request.getfixturevalue("real_data") / "tokenizers"
        clip, lm = folder / "clip", folder / "gpt2"
    tokenizer = load_tokenizer(lm)
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size + 3)
    return Crossing(load_clip_tokenizer(clip), vocabulary), vocabulary


def rebuilt(crossing, beginnings, ids_nc):
    """{(beam, id): whole row of CLIP's tokens}, put together as the text tower reads them."""
    rows, prefix_np = crossing.prefixes(beginnings)
    found = {}
    for texts in crossing.texts(beginnings, rows, ids_nc):
        if isinstance(texts, Wholes):
            own = zip(texts.row_m, texts.ids_m, texts.tokens_ml, strict=True)
            mine = {(int(i), int(t)): row for i, t, row in own if t < crossing.size}
            assert not mine.keys() & found.keys()
            found |= {key: row.tolist() for key, row in mine.items()}
            continue
        n, c, _ = texts.tokens_nct.shape
        for i, j in np.ndindex(n, c):
            if texts.ids_nc[i, j] < crossing.size:
                start = texts.start_nc[i, j]
                assert start <= len(rows[i])
                key = i, int(texts.ids_nc[i, j])
                assert key not in found
                found[key] = [*prefix_np[i, :start], *texts.tokens_nct[i, j]]
    return found


@given(
    texts=st.lists(st.integers(0, 10**6), min_size=1, max_size=3),
    length=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
@pytest.mark.hypothesis
def test_every_text_is_read_as_if_it_were_tokenised_whole(crossing, texts, length, seed):
    crossing, vocabulary = crossing
    rng = np.random.default_rng([seed, *texts])
    known = vocabulary.known
    beginnings = [vocabulary.decode(rng.integers(0, known, length)) for _ in texts]
    ids_nc = np.stack([rng.permutation(known)[:40] for _ in texts])
    ids_nc[0, 3] = -1
    found = rebuilt(crossing, beginnings, ids_nc)
    asked = {(i, int(t)) for i, row in enumerate(ids_nc) for t in row if t >= 0}
    assert set(found) == asked
    keys = sorted(asked)
    rows = crossing._tokenize([beginnings[i] + vocabulary.texts[t] for i, t in keys])
    eos_id = crossing._tokenize.eos_id
    for key, row in zip(keys, rows.tolist(), strict=True):
        end = row.index(eos_id) + 1
        assert [int(x) for x in found[key][:end]] == row[:end], (beginnings[key[0]], key)


def test_most_candidates_come_from_the_table(crossing):
    crossing, vocabulary = crossing
    share = np.mean(crossing._spaced_v[: vocabulary.known])
    assert share > 0.25
