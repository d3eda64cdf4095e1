"""Beam search as transformers does it: LLaVA directories of drawn models write the captions that
`LlavaForConditionalGeneration.generate` writes of them, with the same settings."""

import functools
import itertools

import jax
import numpy as np
import pytest
import torch
import transformers

import har_jax
from har_jax.decoding.beam import beam_search
from har_jax.decoding.weights import for_decoding
from har_jax.interchange import llava_processor
from tests.families.drawn import FAMILIES
from tests.families.llavas import MAX_TOKENS, images, write_llava
from tests.helpers import long

PROMPTS = ["", "a red", "two green hearts"]
STOPPING = [False, True, "never"]
PENALTIES = [0.0, 0.5, 1.0, 2.0]
BEAMS = [2, 3, 4, 5]


def with_ends(model, tokenizer):
    """Ends that are likely at some places and unlikely at others, so that lengths differ."""
    head = model.get_output_embeddings().weight.data
    head.div_(head.norm(dim=1).mean())
    head[tokenizer.eos_id].mul_(5.0)


def written_by(model, inputs, **how) -> tuple[np.ndarray, np.ndarray]:
    """transformers' captions of each image [B,K,T], filled up with EOS, and their scores [B,K]."""
    with torch.no_grad():
        found = model.generate(
            **inputs,
            do_sample=False,
            # With its cache it writes other captions of models with short sliding windows.
            use_cache=False,
            num_return_sequences=how["num_beams"],
            # suppress_tokens comes after the softmax; ours never gives those rows a share of it.
            renormalize_logits=True,
            return_dict_in_generate=True,
            output_scores=True,
            **how,
        )
    written = found.sequences[:, inputs["input_ids"].shape[1] :].numpy()
    whole = np.full((len(written), MAX_TOKENS), model.generation_config.eos_token_id)
    whole[:, : written.shape[1]] = written
    of_image = (-1, how["num_beams"])
    return whole.reshape(*of_image, MAX_TOKENS), found.sequences_scores.numpy().reshape(of_image)


def cases():
    """A hundred models: each decoder with CLIP and SigLIP by turns."""
    drawn = [
        (family, ("clip", "siglip")[seed % 2], 200 + seed)
        for seed, family in zip(range(100), itertools.cycle(FAMILIES), strict=False)
    ]
    for i, case in enumerate(drawn):
        if i == 0:
            yield (*case, (3,))
    yield from long((*case, BEAMS) for case in drawn)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_beams_of_transformers(case, tmp_path, on_one_device, record_property):
    family, kind, seed, beam_counts = case
    model = write_llava(tmp_path, family, kind, seed, with_ends)
    prompt, stopping = PROMPTS[seed % 3], STOPPING[seed // 3 % 3]
    captioner = har_jax.load_captioner(tmp_path, prompt=prompt)
    pictures = images(3)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    text = llava_processor.text_input(captioner.tokenizer, prompt)
    inputs = processor(images=pictures, text=[text] * len(pictures), return_tensors="pt")
    pixels = captioner.preprocess(pictures)

    @functools.partial(jax.jit, static_argnames="beams")
    def write(params, pixels, length_penalty, *, beams):
        model = captioner.structure.merge(params)
        cache = model.prefill(model.project(model.encode(pixels)))
        how = {"length_penalty": length_penalty, "early_stopping": stopping}
        return beam_search(for_decoding(model), cache, beams=beams, max_tokens=MAX_TOKENS, **how)

    lengths = set()
    for beams, penalty in itertools.product(beam_counts, PENALTIES):
        how = {"num_beams": beams, "length_penalty": penalty, "early_stopping": stopping}
        theirs, scores = written_by(model, inputs, **how)
        ours = write(captioner.params, pixels, penalty, beams=beams)
        np.testing.assert_array_equal(ours.tokens, theirs, err_msg=str(how))
        score = ours.logp.sum(-1) / ours.lengths**penalty
        np.testing.assert_allclose(score, scores, atol=1e-4, rtol=1e-4, err_msg=str(how))
        lengths |= set(np.asarray(ours.lengths).ravel().tolist())
    record_property("lengths", len(lengths))
    assert len(lengths) > 2 or len(beam_counts) > 1  # some of the others never end, or at once
