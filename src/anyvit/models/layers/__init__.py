"""Bricks that several families of models share."""
