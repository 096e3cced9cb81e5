"""Remove noise: noise on the input, the clean image as target.

With clean images alone, `noise=` draws new noise in every epoch. With pairs of noisy and clean images,
``fit(noisy, clean)`` takes them as they are; where pairs are few, a convolutional network learns the most
from each. The linear denoiser is a ridge regression from noisy pixels to clean ones.
"""

import numpy as np
from common import Data, start, table
from sklearn.linear_model import Ridge, RidgeCV

from fastae import Autoencoder, Conv2D, GaussianNoise, Network, plots

NOISE = 0.3  # standard deviation, on a scale where black is 1


def main(argv=None):
    data, out = start(__doc__, argv, pairs=True)
    noisy, clean, after = from_clean(data) if isinstance(data, Data) else from_pairs(*data)
    shown = noisy[:10], after["autoencoder"][:10], clean[:10]
    plots.noise_removal(*shown).figure.savefig(out / "denoise.png")
    return table(
        f"Mean squared distance to the clean image, {len(clean)} new images",
        {name: ((images - clean) ** 2).mean() for name, images in ({"noisy": noisy} | after).items()},
    )


def from_clean(data):
    rng = np.random.default_rng(0)

    def with_noise(images):
        return images + rng.normal(0, NOISE, images.shape).astype("float32")

    denoiser = Autoencoder(
        latent_dim=32,
        hidden_layer_sizes=(256,),
        output_activation="sigmoid",
        noise=GaussianNoise(NOISE),
        **data.training(150),
    ).fit(data.train)
    many = np.repeat(data.train, max(1, 20_000 // len(data.train)), axis=0)  # it sees much noise, too
    linear = Ridge(1.0).fit(with_noise(many), many)
    noisy = with_noise(data.new)
    return noisy, data.new, {"linear": linear.predict(noisy), "autoencoder": denoiser.reconstruct(noisy)}


def from_pairs(noisy, clean):
    kept, size = -(len(noisy) // 5), noisy.shape[1:]  # the last fifth is new to the denoisers
    net = Network(
        encoder=[Conv2D(16, 3, padding="same", activation="relu") for _ in range(2)],
        # Linear at the end: with so few pairs and little ink, a sigmoid may saturate at white and stay there.
        decoder=[Conv2D(16, 3, padding="same", activation="relu"), Conv2D(1, 3, padding="same")],
        input_shape=(1, *size),
    )
    x, y = (images.reshape(len(images), -1) for images in (noisy, clean))
    denoiser = Autoencoder(network=net, max_iter=15, batch_size=8, learning_rate_init=2e-3, random_state=0)
    after = {
        "linear": RidgeCV(np.logspace(-1, 3, 5)).fit(x[:kept], y[:kept]).predict(x[kept:]),
        "autoencoder": denoiser.fit(x[:kept], y[:kept]).reconstruct(x[kept:]),
    }
    return noisy[kept:], clean[kept:], {name: rows.reshape(-1, *size) for name, rows in after.items()}


if __name__ == "__main__":
    main()
