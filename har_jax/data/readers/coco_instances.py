"""Which objects are in COCO's images: the category names of `instances_*.json`."""

from __future__ import annotations

import os
import pathlib

import msgspec

from har_jax.errors import UserError, did_you_mean
from har_jax.foreign import check_file, read_typed
from har_jax.ids import Id, read_id
from har_jax.metrics.coco_words import categories

WHAT = "COCO's instances JSON (instances_val2014.json): images, annotations and categories"


class _Category(msgspec.Struct):
    id: int
    name: str


class _Image(msgspec.Struct):
    id: int | str


class _Annotation(msgspec.Struct):
    image_id: int | str
    category_id: int


class _Instances(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def coco_objects(path: str | os.PathLike[str]) -> dict[Id, set[str]]:
    """{image id: the names of COCO's categories that are annotated in it}; an image without
    annotations has none.

    Raises:
      UserError: the file cannot be read, or is of other categories than COCO's 80.
    """
    check_file(path)
    try:  # masks are most of it: passed over, not read into Python's lists
        found = msgspec.json.decode(pathlib.Path(path).read_bytes(), type=_Instances)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        found = read_typed(path, _Instances, WHAT)  # which says what is wrong
    names = {category.id: category.name for category in found.categories}
    known = set(categories())
    for name in names.values():
        if name not in known:
            raise UserError(
                f"{str(path)!r} has the category {name!r:.60}{did_you_mean(name, known)}, which is "
                f"none of COCO's 80; give {WHAT}"
            )
    objects: dict[Id, set[str]] = {read_id(image.id): set() for image in found.images}
    for annotation in found.annotations:
        image, name = read_id(annotation.image_id), names.get(annotation.category_id)
        if name is None or image not in objects:
            what = f"category {annotation.category_id}" if name is None else f"image {image!r:.60}"
            raise UserError(
                f"{str(path)!r} has an annotation of {what}, which it does not list; give {WHAT}"
            )
        objects[image].add(name)
    return objects
