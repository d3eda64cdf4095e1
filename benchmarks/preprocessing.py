"""From JPEG bytes to normalised arrays: this package's pipeline, HF's processor, PyTorch's loader.

    python -m benchmarks.preprocessing [--rounds=7] [--workers=2] [--repeat=4] [--batch-size=16]

One pass over the same photographs (those of coco_mini, `--repeat` times) for each, in turn, round
after round; medians. Every pass begins with nothing read ahead and ends with the last batch; worker
processes live on between passes. All make the pixels of CLIP ViT-L/14 (224 x 224) and are checked
to make the same ones. The processor's time is counted too: unlike images/s it means something on
a machine that others use.

    decoder alone       Pillow's decoding in `--workers` threads: the floor of whatever uses it
    har_jax             `data.pipeline.eval_batches`, as evaluation and training read images:
                        ArrayRecord, Grain's threads, one per core
    HF processor        transformers' CLIPImageProcessor (PIL), called with a batch of images
    loader, HF          torch's DataLoader, `--workers` processes, each calling HF's processor
    loader, PIL         the same, with a transform by hand: Pillow's resize and crop, then
                        normalisation in torch (as torchvision's Resize, CenterCrop, ToTensor and
                        Normalize do on PIL images)
HF's processor has a second backend that needs torchvision; it is not measured, because torchvision
is no requirement here, and resizes to other pixels. HAR_SHARED names the directory with data/.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import multiprocessing
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from har_jax.data import builder
from har_jax.data.dataset import Example, open_split
from har_jax.data.images import CLIP_MEAN, CLIP_STD, Preprocessor
from har_jax.data.pipeline import eval_batches

SIDE = 224


def photographs() -> list[pathlib.Path]:
    root = pathlib.Path(__file__).resolve().parent.parent
    data = pathlib.Path(os.environ.get("HAR_SHARED", root.parent / "shared")) / "data"
    paths = sorted((data / "coco_mini").glob("*2017/*.jpg"))
    if not paths:
        raise SystemExit(f"no photographs in {data / 'coco_mini'}; set HAR_SHARED")
    return paths


def write_dataset(paths: list[pathlib.Path], directory: pathlib.Path) -> None:
    examples = (
        ("train", Example(i, f"{i}.jpg", path.read_bytes(), ["a photograph"]))
        for i, path in enumerate(paths)
    )
    builder.write(directory, examples, name="photos", splits=["train"], description="", settings={})


class Files:
    """A dataset of torch's kind: the array of one file."""

    def __init__(self, paths: list[pathlib.Path], transform: Callable[[Image.Image], Any]):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(io.BytesIO(self.paths[index].read_bytes())) as image:
            return self.transform(image)


class HFTransform:
    def __init__(self) -> None:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        self.processor = CLIPImageProcessorPil()

    def __call__(self, image: Image.Image) -> np.ndarray:
        return self.processor(images=image, return_tensors="np")["pixel_values"][0]


class PILTransform:
    def __init__(self) -> None:
        import torch

        self.mean = torch.tensor(CLIP_MEAN)[:, None, None]
        self.std = torch.tensor(CLIP_STD)[:, None, None]

    def __call__(self, image: Image.Image) -> Any:
        import torch

        image = image.convert("RGB")
        width, height = image.size
        tall = width <= height
        size = (SIDE, int(SIDE * height / width)) if tall else (int(SIDE * width / height), SIDE)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
        image = image.crop((left, top, left + SIDE, top + SIDE))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)


def loader(dataset: Files, batch_size: int, workers: int) -> Any:
    import torch.utils.data

    return torch.utils.data.DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )


def contestants(
    paths: list[pathlib.Path], directory: pathlib.Path, batch_size: int, workers: int
) -> dict[str, Callable[[], Iterator[Any]]]:
    """Each: a pass over the photographs, batch by batch."""
    split, preprocessor, hf = open_split(directory, "train"), Preprocessor(), HFTransform()
    threads = concurrent.futures.ThreadPoolExecutor(workers)

    def decoded(path: pathlib.Path) -> Image.Image:
        return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")

    def decoder() -> Iterator[Any]:
        yield from threads.map(decoded, paths)

    def ours() -> Iterator[Any]:
        for batch in eval_batches(split, preprocessor, batch_size=batch_size):
            yield batch["image"][batch["valid"]]

    def processor() -> Iterator[Any]:
        for first in range(0, len(paths), batch_size):
            images = [decoded(path) for path in paths[first : first + batch_size]]
            yield hf.processor(images=images, return_tensors="np")["pixel_values"]

    by_hf = loader(Files(paths, HFTransform()), batch_size, workers)
    by_hand = loader(Files(paths, PILTransform()), batch_size, workers)
    return {
        "decoder alone": decoder,
        "har_jax": ours,
        "HF processor": processor,
        "loader, HF": lambda: iter(by_hf),
        "loader, PIL": lambda: iter(by_hand),
    }


def check_equal(passes: dict[str, Callable[[], Iterator[Any]]]) -> dict[str, float]:
    """Largest difference of a pixel from HF's, over all photographs; starts the workers too."""
    made = {
        name: np.concatenate([np.asarray(batch) for batch in make()])
        for name, make in passes.items()
        if name != "decoder alone"
    }
    made["har_jax"] = np.moveaxis(made["har_jax"], -1, 1)
    return {name: float(np.abs(x - made["HF processor"]).max()) for name, x in made.items()}


def cpu_seconds() -> float:
    """Of this process and its living children (the loaders' workers), as Linux counts them."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    paths = photographs() * arguments.repeat
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch) / "photos"
        write_dataset(paths, directory)
        passes = contestants(paths, directory, arguments.batch_size, arguments.workers)
        differences = check_equal(passes)
        seconds: dict[str, list[float]] = {name: [] for name in passes}
        cpu: dict[str, list[float]] = {name: [] for name in passes}
        for _ in range(arguments.rounds):
            for name, make in passes.items():
                before, began = cpu_seconds(), time.perf_counter()
                for _batch in make():
                    pass
                seconds[name].append(time.perf_counter() - began)
                cpu[name].append(cpu_seconds() - before)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; {len(paths)} JPEGs of "
        f"{np.mean([path.stat().st_size for path in paths]) / 1e3:.0f} kB, {arguments.workers} "
        f"workers, median of {arguments.rounds} rounds"
    )
    ours = statistics.median(seconds["har_jax"])
    print(
        f"{'':15} {'images/s':>9} {'(least, most)':>15} {'har_jax is':>11} {'CPU ms/image':>13}  "
        "pixels from HF's"
    )
    for name, times in seconds.items():
        rates = sorted(len(paths) / t for t in times)
        spread = f"({rates[0]:.0f}, {rates[-1]:.0f})"
        factor = "" if name == "har_jax" else f"{statistics.median(times) / ours:.2f} x"
        away = f"{differences[name]:.1g}" if name in differences else ""
        used = 1e3 * statistics.median(cpu[name]) / len(paths)
        print(
            f"{name:15} {statistics.median(rates):>9.0f} {spread:>15} {factor:>11} {used:>13.2f}  "
            f"{away}"
        )


if __name__ == "__main__":
    main()
