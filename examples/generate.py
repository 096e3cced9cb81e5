"""Generate: decode codes drawn at random, and why N(0, 1) noise is the wrong thing to draw.

Decoding N(0, 1) noise gives no digits, as people who try it report. The training asks of the codes that
images can be made from them again, and of nothing else: they lie wherever that was useful, here about 3 from
the middle in each direction, in one cluster or more for each digit. N(0, 1) noise falls into the middle,
where no code of an image is and the decoder was never asked for anything. (A variational autoencoder is
trained so that its codes do follow N(0, 1).) So draw codes where codes are: from a Gaussian with their mean
and covariance, as `sample` does, or, since one Gaussian fills the room between the clusters too, a mixture.

Two figures say how good the images are. Recognised: on how many the five nearest training images agree which
digit they show. Told apart: how often, among drawn and as many real images, the nearest neighbour of one is
of its own kind; 0.5 where they are alike, 1 where they have nothing in common (Lopez-Paz and Oquab,
Revisiting classifier two-sample tests, 2017). One image drawn again and again may well be recognised; only
the second figure sees that it is always the same.
"""

import numpy as np
from common import start, table
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from fastae import Autoencoder, plots


def main(argv=None):
    data, out = start(__doc__, argv)
    ae = Autoencoder(
        latent_dim=8, hidden_layer_sizes=(128,), output_activation="sigmoid", **data.training(100)
    ).fit(data.train)
    real = data.new[:2000]
    codes, n = ae.transform(data.train).astype("float64"), len(real)
    mixture = GaussianMixture(20, reg_covar=1e-3, random_state=0).fit(codes[:10_000])
    drawn = {
        "N(0, 1) noise": ae.inverse_transform(np.random.default_rng(0).normal(size=(n, 8))),
        "Gaussian": ae.sample(n, random_state=0),
        "mixture": ae.inverse_transform(np.random.default_rng(0).permutation(mixture.sample(n)[0])),
    }
    plots.image_rows(
        {name: images[:10] for name, images in (drawn | {"real": real}).items()},
        scale="real",
    ).figure.savefig(out / "generate.png")

    digit = KNeighborsClassifier(5).fit(data.train[:10_000], data.labels[:10_000])
    figures = {"standard deviation of the codes": codes.std(axis=0).mean()}
    for name, images in drawn.items():
        figures[f"{name}, recognised"] = (digit.predict_proba(images).max(axis=1) == 1).mean()
        figures[f"{name}, told apart"] = told_apart(images, real)
    figures["real, recognised"] = (digit.predict_proba(real).max(axis=1) == 1).mean()
    return table(f"Images generated from codes of 8 numbers, trained on {data.name}", figures)


def told_apart(some, others):
    """Share of images whose nearest neighbour is of the same of two equally large sets."""
    both, kind = np.concatenate([some, others]), np.repeat([0, 1], len(some))
    nearest = NearestNeighbors(n_neighbors=1).fit(both).kneighbors(return_distance=False)[:, 0]
    return (kind[nearest] == kind).mean()


if __name__ == "__main__":
    main()
