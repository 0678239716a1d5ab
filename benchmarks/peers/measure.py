"""Rounds in which every contestant segments the same frame, one after the other, and what comes out of them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.peers.client import Client, Failed
from benchmarks.peers.contestants import REFERENCE, title
from benchmarks.peers.models import PeerModel


@dataclass(frozen=True)
class Image:
    """A rendered scene on disk.  name: WIDTHxHEIGHT.  pixels: (H, W, 3) uint8 .npy; truth: (H, W) uint8 .npy.

    rounds: how often everybody segments it.
    """

    name: str
    pixels: Path
    truth: Path
    rounds: int


@dataclass(frozen=True)
class Row:
    """One contestant on one image; times in milliseconds, shares 0..1, None where there is nothing to say.

    speedup: over the eager reference, median of the ratios of the two within each round.  labels_equal: on pixels that
    are not near-ties of the reference.  error: why there are no times.
    """

    model: str
    image: str
    contestant: str
    title: str
    median_ms: float | None = None
    p95_ms: float | None = None
    network_ms: float | None = None
    rest_ms: float | None = None
    speedup: float | None = None
    labels_equal: float | None = None
    near_ties: float | None = None
    miou: float | None = None
    peak_mb: float | None = None
    load_s: float | None = None
    first_window_s: float | None = None
    frames_ms: tuple[float, ...] = ()
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        return cls(**{**data, "frames_ms": tuple(data["frames_ms"])})


@dataclass
class Results:
    """peaks_exact: whether memory is of the frame alone.  versions: of what ran, by distribution."""

    rows: list[Row] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    peaks_exact: bool = True


def compete(
    model: PeerModel, names: Sequence[str], errors: dict[str, str], pythons: dict[str, Path], work: Path,
    images: Sequence[Image], threads: int, results: Results,
) -> None:  # fmt: skip
    """Start everybody who has no error yet, then take turns on every image; appends to `results`."""
    clients: dict[str, Client] = {}
    try:
        for name in tqdm(
            [name for name in names if name not in errors], desc=f"{model.name}: starting", disable=None, leave=False
        ):
            try:
                clients[name] = Client(pythons[name], name, model.name, work, threads)
                results.versions.update(clients[name].hello["versions"])
            except Failed as error:
                errors[name] = str(error)
        for image in images:
            clear, truth = work / "clear.npy", np.load(image.truth) if model.trained else None
            clear.unlink(missing_ok=True)
            answers = _rounds(model, clients, errors, image, clear)
            labels = _labels(clients, errors, work)
            mask = np.load(clear) if clear.exists() else None
            reference = None if REFERENCE in errors else answers.get(REFERENCE)
            for name in names:
                row = Row(model.name, image.name, name, title(name, model), error=errors.get(name, ""))
                if name in answers and not row.error:
                    row = _row(row, clients[name].hello, answers[name], reference, labels, mask, truth)
                    results.peaks_exact &= all(answer["peak_exact"] for answer in answers[name])
                results.rows.append(row)
    finally:
        for client in clients.values():
            client.close()


def _rounds(
    model: PeerModel, clients: dict[str, Client], errors: dict[str, str], image: Image, clear: Path
) -> dict[str, list[dict[str, Any]]]:
    """Answers by contestant.  Who dies is moved from `clients` to `errors`.

    Where the reference is sure of its labels goes to `clear`, in the last round and outside of the measurement.
    """
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in clients}
    order = list(clients)
    with tqdm(total=image.rounds * len(order), desc=f"{model.name} {image.name}", disable=None, leave=False) as bar:
        for turn in range(image.rounds):
            # Each round starts with another one, so that nobody always runs after the same neighbour.
            shift = turn % max(len(order), 1)
            for name in order[shift:] + order[:shift]:
                bar.set_postfix_str(name)
                if name in clients:
                    try:
                        last = name == REFERENCE and turn == image.rounds - 1
                        extra = {"clear": str(clear)} if last else {}
                        answers[name].append(clients[name].ask(frame=str(image.pixels), **extra))
                    except Failed as error:
                        errors[name] = str(error)
                        del clients[name]
                bar.update()
    return answers


def _labels(clients: dict[str, Client], errors: dict[str, str], work: Path) -> dict[str, np.ndarray]:
    """The label maps of the last round."""
    labels = {}
    for name in list(clients):
        try:
            clients[name].ask(save=str(work / "labels.npy"))
        except Failed as error:
            errors[name] = str(error)
            del clients[name]
            continue
        labels[name] = np.load(work / "labels.npy")
    if REFERENCE not in labels:
        print(f"peers: no {REFERENCE} reference: labels are not compared", file=sys.stderr)
    return labels


def _row(
    row: Row, hello: dict[str, Any], answers: list[dict[str, Any]], reference: list[dict[str, Any]] | None,
    labels: dict[str, np.ndarray], clear: np.ndarray | None, truth: np.ndarray | None,
) -> Row:  # fmt: skip
    frames = tuple(1e3 * (answer["network_s"] + answer["rest_s"]) for answer in answers)
    speedup = equal = ties = None
    if reference:
        base = [1e3 * (answer["network_s"] + answer["rest_s"]) for answer in reference]
        speedup = statistics.median(b / f for b, f in zip(base, frames, strict=True))
    if clear is not None and REFERENCE in labels:
        equal = float((labels[row.contestant] == labels[REFERENCE])[clear].mean())
        ties = float(1 - clear.mean())
    return Row(
        row.model, row.image, row.contestant, row.title, statistics.median(frames), float(np.percentile(frames, 95)),
        1e3 * statistics.median(answer["network_s"] for answer in answers),
        1e3 * statistics.median(answer["rest_s"] for answer in answers),
        speedup, equal, ties, None if truth is None else miou(labels[row.contestant], truth),
        max(answer["peak_mb"] for answer in answers), hello["load_s"], hello["first_s"], frames,
    )  # fmt: skip


def miou(labels: np.ndarray, truth: np.ndarray, ignore: int = 255) -> float:
    """Mean over the classes that occur of intersection over union, one histogram, as in mmsegmentation; 0..1."""
    keep = truth != ignore
    pairs = truth[keep].astype(np.int64) * 256 + labels[keep]
    confusion = np.bincount(pairs, minlength=65536).reshape(256, 256)
    hit = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hit
    return float((hit[union > 0] / union[union > 0]).mean())
