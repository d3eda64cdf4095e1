"""Rewards as users get them wrong: `config.scst.reward="tests.sessions.faulty_rewards:NAME"`."""

import numpy as np


def gives_nan(image_ids, captions, ended):
    return np.full(ended.shape, np.nan)


def has_the_wrong_shape(image_ids, captions, ended):
    return np.zeros(len(image_ids))


def raises(image_ids, captions, ended):
    return {}["a key that is not there"]


def is_always_zero(image_ids, captions, ended):
    return np.zeros(ended.shape)


def does_not_look(image_ids, captions, ended):
    """Length alone: the same for any image."""
    return [[float(len(text.split())) for text in group] for group in captions]
