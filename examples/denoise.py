"""Remove noise: train with noise on the input and the clean image as target.

`noise=` draws new noise in every epoch; where you have pairs of noisy and clean images of your own,
``fit(noisy, clean)`` takes them. The linear denoiser is a ridge regression from noisy pixels to clean ones.
"""

import numpy as np
from common import start, table
from sklearn.linear_model import Ridge

from fastae import Autoencoder, GaussianNoise, plots

NOISE = 0.3  # standard deviation, on a scale where black is 1


def main(argv=None):
    data, out = start(__doc__, argv)
    rng = np.random.default_rng(0)

    def noisy(images):
        return images + rng.normal(0, NOISE, images.shape).astype("float32")

    denoiser = Autoencoder(
        latent_dim=32,
        hidden_layer_sizes=(256,),
        output_activation="sigmoid",
        noise=GaussianNoise(NOISE),
        **data.training(150),
    ).fit(data.train)
    many = np.repeat(data.train, max(1, 20_000 // len(data.train)), axis=0)  # it sees much noise, too
    linear = Ridge(1.0).fit(noisy(many), many)

    before = noisy(data.new)
    after = {"noisy": before, "linear": linear.predict(before), "autoencoder": denoiser.reconstruct(before)}
    ax = plots.noise_removal(before[:10], after["autoencoder"][:10], data.new[:10])
    ax.figure.savefig(out / "denoise.png")
    return table(
        f"Mean squared distance to the clean image, new images of {data.name}",
        {name: ((images - data.new) ** 2).mean() for name, images in after.items()},
    )


if __name__ == "__main__":
    main()
