"""Honest splits: stratified, seeded, and no content on two sides."""

from __future__ import annotations

import hashlib

import numpy as np

TEST_SHARE = 0.20
VAL_SHARE = 0.15


def stratified(labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose what is held out: about `share` of the groups of each class.

    A group goes to one side as a whole, with the class of its first member. The choice depends on the content alone:
    neither the order of the images nor the presence of others changes on which side of the draw a group lies.

    Args:
        labels: Classes (N,).
        groups: Groups (N,) uint64, such as content hashes: what is equal must not be separated.
        share: The share that is held out, in (0, 1). A class of two groups or more always gives at least one and keeps
            at least one; a class of one group keeps it.
        seed: Another seed, another draw.

    Returns:
        A mask (N,), True where held out.
    """
    unique, first, member_of = np.unique(groups, return_index=True, return_inverse=True)
    draw = np.array([_draw(int(group), seed) for group in unique], dtype=np.uint64)
    held_out = np.zeros(len(unique), dtype=bool)
    group_labels = labels[first]
    for label in np.unique(group_labels):
        members = np.flatnonzero(group_labels == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out[members[np.argsort(draw[members], kind="stable")[:count]]] = True
    return held_out[member_of]


def _draw(group: int, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed} {group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def class_weights(labels: np.ndarray, num_classes: int, *, far: float = 3.0) -> np.ndarray | None:
    """Weights (K,) float32 in inverse proportion to how often a class occurs, 1 on average over the labels; 0 for a
    class that does not occur. None where the most frequent class has less than `far` times the images of the rarest.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    if counts.max() < far * counts[present].min():
        return None
    weights = np.zeros(num_classes, dtype=np.float32)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights
