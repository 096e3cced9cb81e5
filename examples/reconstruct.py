"""Reconstruct: images through a code of 16 numbers and back, beside PCA with as many components.

PCA is the best a linear autoencoder can do; what the relu layers add shows in new images.
"""

from common import start, table
from sklearn.decomposition import PCA

from fastae import Autoencoder, plots


def main(argv=None):
    data, out = start(__doc__, argv)
    ae = Autoencoder(latent_dim=16, hidden_layer_sizes=(128,), **data.training(60)).fit(data.train)
    pca = PCA(16, random_state=0).fit(data.train)
    linear = pca.inverse_transform(pca.transform(data.new))

    again = ae.reconstruct(data.new)
    rows = {"original": data.new[:10], "autoencoder": again[:10], "PCA": linear[:10]}
    plots.image_rows(rows).figure.savefig(out / "reconstruct.png")
    return table(
        f"Mean squared error of new images of {data.name}, 16 numbers for {data.new.shape[1]}",
        {"autoencoder": ((again - data.new) ** 2).mean(), "PCA": ((linear - data.new) ** 2).mean()},
    )


if __name__ == "__main__":
    main()
