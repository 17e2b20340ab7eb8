"""How a model changes size: up (design), down (shrink), out (spread), and the search over all of it."""
