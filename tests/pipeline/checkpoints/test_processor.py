"""Resizing as the checkpoint's own processor does it, against transformers: processor, model and post-processing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deploy import main
from engines.bundle import open_bundle
from engines.images.resize import pixels
from engines.tiling.sizes import Resize
from pipeline.checkpoints import load_model, processor
from tests.pipeline.checkpoints.published import TINY, huggingface_model, refusal, transformers


def _folder(path: Path, **processor: Any) -> Path:
    huggingface_model(**TINY).save_pretrained(path)
    made = transformers().SegformerImageProcessorPil(**processor)
    made.save_pretrained(path)
    return path


def _photos(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    """Blurred noise: what resizing with another filter, or by another way, would change."""
    folder.mkdir()
    paths = []
    for index, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
        coarse = Image.fromarray(noise[::5, ::5]).resize((width, height), Image.Resampling.BICUBIC)
        paths.append(folder / f"{index}.png")
        Image.blend(Image.fromarray(noise), coarse, 0.7).save(paths[-1])
    return paths


def _judged(folder: Path, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """transformers' labels of an image, and whether they are no near-tie."""
    own = transformers().SegformerImageProcessorPil.from_pretrained(folder)
    model = transformers().SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    image = Image.open(path)
    with torch.no_grad():
        outputs = model(**own(image, return_tensors="pt"))
    size = (image.height, image.width)
    labels = own.post_process_semantic_segmentation(outputs, target_sizes=[size])[0].numpy()
    probabilities = torch.nn.functional.interpolate(outputs.logits, size, mode="bilinear")[0].softmax(0)
    top2 = probabilities.topk(2, 0).values
    return labels, (top2[0] - top2[1] > 1e-4).numpy()


def _require_transformers(folder: Path, photos: list[Path], masks: Path) -> None:
    for path in photos:
        expected, clear = _judged(folder, path)
        labels = np.asarray(Image.open(masks / path.name))
        assert len(np.unique(expected)) > 1, "one class would prove nothing"
        assert clear.mean() > 0.98
        assert np.array_equal(labels[clear], expected[clear]), path


@pytest.mark.parametrize(("size", "resample"), [({"height": 64, "width": 96}, 2), ({"height": 96, "width": 64}, 3)])
def test_checkpoint_equals_transformers_on_every_pixel(
    size: dict[str, int], resample: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _folder(tmp_path / "model", size=size, resample=resample)
    photos = _photos(tmp_path / "photos", (131, 77), (64, 96), (40, 200), (250, 250))
    built = ["build-engine", str(folder), "-o", str(tmp_path / "bundle"), "--backend", "openvino"]
    assert main([*built, "--resize", "checkpoint"]) == 0
    said = f"{size['width']}x{size['height']}, pillow-{'bilinear' if resample == 2 else 'bicubic'}"
    assert f"images are brought to {said}, as by the checkpoint's processor" in capsys.readouterr().out
    assert open_bundle(tmp_path / "bundle").manifest.tiling.window_h == size["height"]
    assert main(["run", str(tmp_path / "bundle"), str(tmp_path / "photos"), "-o", str(tmp_path / "masks")]) == 0
    _require_transformers(folder, photos, tmp_path / "masks")


def test_a_bundle_of_plain_windows_can_be_told_to_do_as_the_checkpoint_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _folder(tmp_path / "model", size={"height": 64, "width": 64})
    photos = _photos(tmp_path / "photos", (131, 77), (50, 64))
    built = ["build-engine", str(folder), "-o", str(tmp_path / "bundle"), "--backend", "openvino", "--tile", "64"]
    assert main(built) == 0
    said = "the checkpoint's processor resizes to 64x64, pillow-bilinear; here they are run at their own size"
    assert said in capsys.readouterr().out
    run = ["run", str(tmp_path / "bundle"), str(tmp_path / "photos"), "-o"]
    assert main([*run, str(tmp_path / "masks"), "--resize", "checkpoint"]) == 0
    _require_transformers(folder, photos, tmp_path / "masks")
    assert main([*run, str(tmp_path / "own")]) == 0
    assert any(
        not np.array_equal(Image.open(tmp_path / "own" / path.name), Image.open(tmp_path / "masks" / path.name))
        for path in photos
    )


def test_the_shorter_edge_is_rounded_as_transformers_rounds_it(tmp_path: Path) -> None:
    """700x529 at 64 is 84.7 wide: 84 there."""
    folder = _folder(tmp_path / "model")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": {"shortest_edge": 64}}))
    photos = _photos(tmp_path / "photos", (700, 529))
    options = ["--resize", "checkpoint", "--tile", "64x84", "--backend", "openvino"]
    assert main(["build-engine", str(folder), "-o", str(tmp_path / "bundle"), *options]) == 0
    assert main(["run", str(tmp_path / "bundle"), str(tmp_path / "photos"), "-o", str(tmp_path / "masks")]) == 0
    _require_transformers(folder, photos, tmp_path / "masks")


@pytest.mark.parametrize(
    ("fields", "resize", "resample"),
    [
        ({}, "512x512", "pillow-bilinear"),
        ({"size": 320}, "320x320", "pillow-bilinear"),
        ({"size": {"height": 256, "width": 512}, "resample": 3}, "512x256", "pillow-bicubic"),
        ({"size": {"shortest_edge": 512}}, "short=512:floor", "pillow-bilinear"),
        ({"size": {"shortest_edge": 512, "longest_edge": 2048}}, "short=512,long=2048:floor", "pillow-bilinear"),
        ({"do_split_image": True, "size": {"shortest_edge": 512, "longest_edge": 512}}, "", "pillow-bilinear"),
        ({"do_resize": False}, "none", "pillow-bilinear"),
        ({"do_center_crop": True, "crop_size": 512}, "", "pillow-bilinear"),
    ],
)
def test_what_the_processor_does_is_read(fields: dict[str, Any], resize: str, resample: str, tmp_path: Path) -> None:
    huggingface_model(**TINY).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    spec = load_model(str(tmp_path)).spec
    assert (spec.resize, spec.resample, spec.direct) == (resize, resample, True)


@pytest.mark.parametrize("name", ["MaskFormer", "Mask2Former", "OneFormer"])
@pytest.mark.parametrize("edges", [(48, 80), (64, 64), (33, 70)])
def test_two_edges_and_a_divisor_are_those_of_transformers(name: str, edges: tuple[int, int]) -> None:
    extra = {"repo_path": None, "class_info_file": None, "num_text": 1, "metadata": {}} if name == "OneFormer" else {}
    size = {"shortest_edge": edges[0], "longest_edge": edges[1]}
    made = getattr(transformers(), f"{name}ImageProcessorPil")(size=size, **({} if extra else {"size_divisor": 32}))
    config = {**made.to_dict(), "image_processor_type": f"{name}ImageProcessor"}
    asked = Resize.parse(processor.resize_words(config))
    assert asked is not None
    rng = np.random.default_rng(edges)
    for height, width in [(48, 48), (48, 200), (33, 90), *rng.integers(20, 300, (60, 2)).tolist()]:
        got = made.preprocess(Image.new("RGB", (width, height)), return_tensors="np")["pixel_values"].shape[2:]
        assert pixels(asked.of(height, width)) == got, (height, width)


@pytest.mark.parametrize(
    "fields", [{"resample": 9}, {"resample": "x"}, {"size": 0}, {"size": {"height": -3, "width": 3}}]
)
def test_a_processor_that_cannot_be_is_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    huggingface_model(**TINY).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    assert refusal(lambda: load_model(str(tmp_path)))


def test_without_a_processor_there_is_nothing_to_do_as(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    huggingface_model(**TINY).save_pretrained(tmp_path)
    assert main(["build-engine", str(tmp_path), "-o", str(tmp_path / "b"), "--resize", "checkpoint"]) == 2
    assert "where no preprocessor_config.json says" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_what_a_processor_does_besides_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _folder(tmp_path / "model")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_center_crop": True}))
    assert main(["build-engine", str(folder), "-o", str(tmp_path / "b"), "--resize", "checkpoint"]) == 2
    assert "does more than resize images (do_center_crop=True" in capsys.readouterr().err
