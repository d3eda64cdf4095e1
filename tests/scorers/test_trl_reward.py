"""Our rewards for TRL's trainers: the values of SCST's rewards, and GRPOTrainer itself."""

import importlib.util

import numpy as np
import pytest

import har_jax.rewards
from har_jax.data.dataset import open_split, words_of
from har_jax.errors import UserError
from har_jax.scorers.split_reward import split_reward

SPEC = "cider_d + 0.5*bleu - repetition"
REFERENCES = {"a.jpg": ["a dog runs", "the dog"], "b.jpg": ["two cats sleep"]}
TEXTS = ["a dog runs", "two two two cats", "the dog"]
NAMES = ["a.jpg", "b.jpg", "b.jpg"]


def test_a_dataset_gives_what_scst_gives(workspace):
    split = open_split(workspace / "data", "train")
    expected = split_reward(SPEC, split, words_of(split.directory))
    ids = [split.ids[5], split.ids[2], split.ids[5]]
    texts = [split.captions[5][0], split.captions[2][1], "a red circle circle circle"]
    reward = har_jax.rewards.trl(SPEC, workspace / "data", eos_ids=[9, 7])
    told = {}
    values = reward(
        prompts=["x"] * 3,
        completions=texts,
        completion_ids=[[1, 9], [1, 2], [7]],
        image_id=ids,
        log_metric=told.__setitem__,
        trainer_state=None,
    )
    ended = np.array([[True], [False], [True]])
    total, parts = expected.breakdown(np.array(ids), [[text] for text in texts], ended)
    np.testing.assert_array_equal(values, total[:, 0])
    assert all(type(value) is float for value in values) and reward.signature == expected.signature
    assert told["reward_part/bleu"] == pytest.approx(parts["bleu"].mean())
    # Without the ids that end, all count as ended; images by their files' names.
    whole = har_jax.rewards.trl(SPEC, workspace / "data", image_id="file")
    total = expected(np.array(ids), [[text] for text in texts], np.ones((3, 1), bool))
    names = [split.filenames[5], split.filenames[2], split.filenames[5]]
    assert whole(completions=texts, completion_ids=[[1]] * 3, file=names) == total[:, 0].tolist()


def test_chats_are_their_own_messages():
    reward = har_jax.rewards.trl(SPEC, REFERENCES, image_id="file")
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": "dog"}]
    chats = [
        [{"role": "assistant", "content": TEXTS[0]}],
        [{"role": "assistant", "content": TEXTS[1]}, {"role": "tool", "content": "a dog runs"}],
        [{"role": "assistant", "content": parts}],
    ]
    values = reward(completions=TEXTS, file=NAMES)
    assert reward(prompts=[[]] * 3, completions=chats, file=NAMES) == values
    assert values[0] > 1 and values[2] == pytest.approx(0, abs=1e-6)


def test_references_in_each_row(workspace, tmp_path):
    rows = [REFERENCES[name] for name in NAMES]
    reward = har_jax.rewards.trl("bleu - repetition")
    expected = har_jax.rewards.trl("bleu - repetition", REFERENCES)
    found = reward(completions=TEXTS, references=rows)
    assert found == expected(completions=TEXTS, image_id=NAMES) and len(set(found)) > 1
    path = workspace / "data/document_frequency.train.npz"
    split = open_split(workspace / "data", "train")
    both = har_jax.rewards.trl(SPEC, document_frequency=path)
    texts, ids = [group[0] for group in split.captions[:3]], split.ids[:3]
    own = har_jax.rewards.trl(SPEC, workspace / "data")(completions=texts, image_id=ids)
    assert both(completions=texts, references=split.captions[:3]) == pytest.approx(own, abs=1e-5)


@pytest.mark.usefixtures("untyped")
def test_mistakes_are_told_in_a_line(workspace):
    reward = har_jax.rewards.trl("bleu", REFERENCES)
    for columns, told in (
        ({"completions": TEXTS, "file": NAMES}, "needs the column 'image_id'.*gave file"),
        ({"completions": TEXTS, "image_id": NAMES[:2]}, "one entry per completion"),
        ({"completions": ["a"], "image_id": ["c.jpg"]}, "has the image 'c.jpg', which"),
        ({"completions": "a", "image_id": "a.jpg"}, "stands for a list"),
        ({"completions": [3], "image_id": NAMES[:1]}, "neither a text nor a list of messages"),
    ):
        with pytest.raises(UserError, match=told):
            reward(**columns)
    by_rows = har_jax.rewards.trl("bleu")
    with pytest.raises(UserError, match="each of whose letters"):
        by_rows(completions=["a"], references=["a dog"])
    for given, told in (
        (("cider_d",), "document frequencies over the references of all training images"),
        (("blue", REFERENCES), "did you mean 'bleu'"),
        (("clip_score", REFERENCES), "needs the images, which a prepared dataset has"),
        (("bleu", {1: "a dog"}), "each of whose letters"),
        (("bleu", workspace / "nothing"), "does not exist"),
        ((SPEC, workspace / "data", "tset"), "has no split 'tset'"),
    ):
        with pytest.raises(UserError, match=told):
            har_jax.rewards.trl(*given[:2], **({"split": given[2]} if given[2:] else {}))
    for ids, told in (
        ("2", "eos_ids is '2'; give token ids"),
        ([None], "eos_ids is None; it must be a whole number"),
        ([-1], "eos_ids is -1; it must be at least 0"),
        (1.5, "eos_ids is 1.5; give token ids"),
    ):
        with pytest.raises(UserError, match=told):
            har_jax.rewards.trl("bleu", REFERENCES, eos_ids=ids)
    with pytest.raises(UserError, match="the completions are None; give a list of them"):
        by_rows(completions=None, references=[["a dog"]])


def test_a_clip_sees_the_datasets_images(workspace):
    clip = str(workspace / "models/clip-b")
    split = open_split(workspace / "data", "val")
    reward = har_jax.rewards.trl("clip_score", workspace / "data", split="val", clip=clip)
    texts, ids = [group[0] for group in split.captions[:3]], split.ids[:3]
    expected = split_reward("clip_score", split, words_of(split.directory), clip=clip)
    total = expected(np.array(ids), [[text] for text in texts], np.ones((3, 1), bool))
    np.testing.assert_allclose(reward(completions=texts, image_id=ids), total[:, 0], atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_grpo_trainer_runs_three_steps(tmp_path):
    """A tiny random policy; the rewards that TRL logs are those of the texts that it logs."""
    import datasets
    import torch
    import transformers
    import trl
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = "<pad> <eos> image : a dog runs the two cats sleep".split()  # noqa: SIM905
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    policy = transformers.LlamaForCausalLM(config)
    reward = har_jax.rewards.trl(SPEC, REFERENCES, image_id="file", eos_ids=[1])
    seen = []

    def told(**given):
        seen.append((given["completions"], given["file"], reward(**given)))
        return seen[-1][-1]

    rows = datasets.Dataset.from_list([{"prompt": "image :", "file": f} for f in NAMES])
    settings = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=3,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=6,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer = trl.GRPOTrainer(
        model=policy,
        reward_funcs=[reward, told],
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    logs = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logs) == len(seen) == 3
    for row, (texts, files, values) in zip(logs, seen, strict=True):
        assert len(texts) == 4 and set(files) <= set(NAMES)
        mean = pytest.approx(np.mean(values), abs=1e-5)
        assert row["rewards/har_jax/mean"] == mean and row["rewards/told/mean"] == mean
        assert "reward_part/cider_d" in row
    assert len({value for *_, values in seen for value in values}) > 2
    assert any(not torch.equal(p, before[name]) for name, p in policy.named_parameters())
