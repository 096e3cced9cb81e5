"""One table of kernels and its four implementations.

``table`` says what every kernel computes; ``scalar``, ``vector``, ``jitted`` and ``compiled`` each hold
all of them. Nothing is imported here: :mod:`fastae.backend` loads the one that is asked for.
"""
