"""A small model that thinks in long traces whose steps look far back, and problems for it."""
