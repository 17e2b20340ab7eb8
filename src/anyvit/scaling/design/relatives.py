"""The plain ViTs of timm that everybody knows, as shapes: what a design is compared with."""

from __future__ import annotations

from collections.abc import Mapping

from anyvit.costs.counts import Specification

RELATIVES: Mapping[str, tuple[int, int, int, int, float]] = {
    "deit_tiny_patch16_224": (16, 12, 3, 64, 4.0),
    "deit_small_patch16_224": (16, 12, 6, 64, 4.0),
    "deit_base_patch16_224": (16, 12, 12, 64, 4.0),
    "deit3_medium_patch16_224": (16, 12, 8, 64, 4.0),
    "vit_xsmall_patch16_clip_224": (16, 10, 4, 64, 4.0),
    "vit_wee_patch16_reg1_gap_256": (16, 14, 4, 64, 5.0),
    "vit_little_patch16_reg1_gap_256": (16, 14, 5, 64, 5.6),
    "vit_betwixt_patch16_gap_256": (16, 12, 10, 64, 4.0),
    "vit_small_patch16_36x1_224": (16, 36, 6, 64, 4.0),
    "vit_base_patch16_gap_224": (16, 12, 16, 48, 4.0),
    "vit_small_patch32_224": (32, 12, 6, 64, 4.0),
    "vit_medium_patch32_clip_224": (32, 12, 8, 64, 4.0),
    "vit_base_patch32_224": (32, 12, 12, 64, 4.0),
    "vit_small_patch8_224": (8, 12, 6, 64, 4.0),
}
"""Patch size, blocks, heads, channels of a head, MLP ratio. Their registers and poolings are left out."""


def relatives(image_size: int, num_classes: int) -> dict[str, Specification]:
    """Their shapes for images of that size, by name; without those whose patches do not divide it."""
    return {
        name: Specification(image_size, patch, depth, heads, head_dim, ratio, num_classes)
        for name, (patch, depth, heads, head_dim, ratio) in RELATIVES.items()
        if image_size % patch == 0
    }
