"""What a Hugging Face directory says of the images that its model reads.

It stands in `preprocessor_config.json`, or, as transformers 5 saves whole processors, under
`image_processor` in `processor_config.json`.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta

from har_jax.errors import UserError
from har_jax.foreign import Keys, read_typed, shortened

CONFIG_NAME, WHOLE_NAME = "preprocessor_config.json", "processor_config.json"

_Side = Annotated[int, Meta(ge=1, le=2**13)]
_Scale = Annotated[float, Meta(ge=1e-6, le=1e6)]
"""With less or more, pixels would be no numbers of float32, or all of them one number."""
_Mean = Annotated[float, Meta(ge=-1e6, le=1e6)]
_CLASSES = [
    f"{of}{kind}{backend}"
    for of in ("CLIP", "Llava", "Siglip", "Bit")
    for kind in ("ImageProcessor", "FeatureExtractor")
    for backend in ("", "Fast", "Pil")
]

KEYS = Keys(
    used={
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), bool),
        "size": _Side | dict[str, _Side | None],
        "crop_size": _Side | dict[str, _Side | None],
        "rescale_factor": _Scale,
        "image_mean": tuple[_Mean, _Mean, _Mean],
        "image_std": tuple[_Scale, _Scale, _Scale],
        "resample": Annotated[int, Meta(ge=0, le=5)],
    },
    fixed={
        "do_pad": (False,),
        "do_convert_rgb": (True,),
        "image_processor_type": _CLASSES,
        "feature_extractor_type": _CLASSES,
        "size_divisor": (1,),
    },
    # What the processor is part of, and how transformers runs it.
    harmless=frozenset({
        "processor_class", "patch_size", "image_seq_length", "num_additional_image_tokens",
        "vision_feature_select_strategy", "data_format", "input_data_format", "device",
        "return_tensors", "disable_grouping", "image_token", "default_to_square", "use_fast",
        "transformers_version",
    }),
)  # fmt: skip

_NEEDED_BY = {
    "size": "do_resize",
    "resample": "do_resize",
    "crop_size": "do_center_crop",
    "rescale_factor": "do_rescale",
    "image_mean": "do_normalize",
    "image_std": "do_normalize",
}
"""Settings that may be null where what they belong to is not done."""


_SIGLIP = {
    "do_center_crop": False,
    "shortest_edge": 0,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
"""What the file of a SigLIP's processor means that lacks a key, where that is not what CLIP's
does."""


def has_preprocessor(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory says anything of its images."""
    return any((pathlib.Path(directory) / name).exists() for name in (CONFIG_NAME, WHOLE_NAME))


def read_settings(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a `data.images.Preprocessor` that a directory tells, as they are called there.

    Raises:
      UserError: no such file, not JSON, a step that the class does not have, or a number out of its
        range.
    """
    path, whole = pathlib.Path(directory) / CONFIG_NAME, pathlib.Path(directory) / WHOLE_NAME
    what = "a Hugging Face directory of an encoder"
    if path.exists() or not whole.exists():
        return settings_of(read_typed(path, dict[str, Any], what), str(path))
    config = read_typed(whole, dict[str, Any], what).get("image_processor")
    if not isinstance(config, dict):
        raise UserError(
            f"there is no file {str(path)!r}, and {WHOLE_NAME} beside it has no image_processor; "
            f"give {what}"
        )
    return settings_of(config, f"{whole}: image_processor")


def settings_of(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`read_settings` of what a file holds."""
    undone = {step for step in _NEEDED_BY.values() if config.get(step) is False}
    idle = {key for key, step in _NEEDED_BY.items() if step in undone and config.get(key) is None}
    found = KEYS.read({key: value for key, value in config.items() if key not in idle}, where)
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    made = dict(_SIGLIP) if str(kind).startswith("Siglip") else {}
    made |= {key: found[key] for key in ("do_resize", "do_center_crop", "resample") if key in found}
    if "size" in found:
        size = _sides(found["size"], where, "size")
        edge = size.get("shortest_edge", 0)
        made |= {"shortest_edge": edge, "size": (edge, edge) if edge else _pair(size)}
    if "crop_size" in found:
        crop: Any = found["crop_size"]
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        made["crop_size"] = _pair(_sides(crop, where, "crop_size"))
    rescales, normalises = found.get("do_rescale", True), found.get("do_normalize", True)
    factor = {"rescale_factor": found["rescale_factor"]} if "rescale_factor" in found else {}
    made |= factor if rescales else {"rescale_factor": 1.0}
    usual = {key: found[key] for key in ("image_mean", "image_std") if key in found}
    return made | (usual if normalises else {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3})


def _sides(size: int | dict[str, int | None], where: str, key: str) -> dict[str, int]:
    size = {"shortest_edge": size} if isinstance(size, int) else size
    sides = {name: side for name, side in size.items() if side is not None}
    kinds = [{"height", "width"}] + [{"shortest_edge"}] * (key == "size")
    if set(sides) not in kinds:
        raise UserError(
            f"{where}: {key} is {shortened(repr(size))}; it must have "
            f"{' or '.join(' and '.join(sorted(kind)) for kind in kinds)}, and nothing else"
        )
    return sides


def _pair(sides: Mapping[str, int]) -> tuple[int, int]:
    return sides["height"], sides["width"]
