"""Captioning with anything that writes: each image gets its own caption, or it is an error."""

import itertools

import pytest

from har_jax.data.protocols import Written
from har_jax.errors import UserError
from har_jax.evaluation.run import rate, write_captions


class Pictures:
    """Image k of n has the id 100 + k and the bytes of k."""

    def __init__(self, n):
        self.ids = range(100, 100 + n)

    def __len__(self):
        return len(self.ids)

    def read(self, i):
        return bytes([i])


class Counting:
    """Writes an image's byte; every third caption was cut; `more` captions than there are images.

    Attributes:
      seen: the images that were read.
    """

    def __init__(self, more=0):
        self.more, self.seen = more, []

    def write(self, images):
        for i in itertools.islice(itertools.count(), len(images) + self.more):
            self.seen.append(images.read(min(i, len(images) - 1))[0])
            yield Written(str(self.seen[-1]), self.seen[-1] % 3 != 0)


def test_every_image_once_with_its_own_caption():
    found = write_captions(Counting(), Pictures(7))
    assert found.texts == {100 + k: str(k) for k in range(7)}
    assert found.ended == {100 + k: k % 3 != 0 for k in range(7)}
    assert found.cut_rate == pytest.approx(3 / 7)


def test_a_limit_stops_early():
    writer = Counting()
    assert list(write_captions(writer, Pictures(9), limit=4).texts) == [100, 101, 102, 103]
    assert writer.seen == [0, 1, 2, 3]


@pytest.mark.parametrize("more", [-1, 1])
def test_a_caption_too_few_or_too_many(more):
    with pytest.raises(UserError, match="one for each, in their order"):
        write_captions(Counting(more), Pictures(3))


def test_captions_a_second_leave_out_the_first_batch_and_its_compiling():
    batches = [9.0, 9.001, 9.002, 10.0, 10.001, 10.002, 11.0, 11.001]
    assert rate([0.0, *batches]) == pytest.approx(5 / (11.001 - 9.002))
    assert rate([0.0, 4.0, 4.001]) == pytest.approx(2 / 4.001)  # one batch is all there is
    assert rate([0.0, 2.0, 3.0, 4.0]) == pytest.approx(1.0)  # one image at a time
    assert rate([0.0]) is None
    assert write_captions(Counting(), Pictures(3)).per_second > 0
