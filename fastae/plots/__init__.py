"""Pictures of a training run. Needs matplotlib: ``pip install "fastae[plots]"``.

::

    base      colours, new axes, checks of what is drawn
    curves    learning_curve, latent_scatter, anomalies
    images    image_rows, reconstructions, noise_removal, training_strip, training_animation
    speeds    speedup, roofline; times and numbers as text
    diagram   network

Every function draws into the axes it is given, or into a figure of its own, and returns the axes
(`training_animation` returns the animation); ``ax.figure.savefig("name.png")`` writes the picture. Nothing
here calls ``show``, imports pyplot or changes the backend, so that the functions do no harm in a script, a
server or a notebook. For a window of pyplot's, pass its axes: ``learning_curve(losses, ax=plt.gca())``.

Colours are those of M. Okabe and K. Ito, Color Universal Design (2008), which people with any kind of
colour vision tell apart; lines also differ in their marks and bars carry their numbers, for print in grey.
"""

from fastae.plots.base import COLOURS
from fastae.plots.curves import anomalies, latent_scatter, learning_curve
from fastae.plots.diagram import network
from fastae.plots.images import image_rows, noise_removal, reconstructions, training_animation, training_strip
from fastae.plots.speeds import duration, roofline, significant, speedup

__all__ = [
    "COLOURS",
    "anomalies",
    "duration",
    "image_rows",
    "latent_scatter",
    "learning_curve",
    "network",
    "noise_removal",
    "reconstructions",
    "roofline",
    "significant",
    "speedup",
    "training_animation",
    "training_strip",
]
