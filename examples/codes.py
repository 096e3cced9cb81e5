"""Reduce the dimension: codes of two numbers, coloured by digit, and as features of a classifier.

A k-nearest-neighbour classifier sees nothing of an image but its two numbers: those of the autoencoder, or
the first two principal components. Neither of the two saw a label.
"""

from common import start, table
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from fastae import Autoencoder, plots


def main(argv=None):
    data, out = start(__doc__, argv)
    encoders = {
        "autoencoder": Autoencoder(latent_dim=2, hidden_layer_sizes=(128, 32), **data.training(150)),
        "PCA": PCA(2, random_state=0),
    }
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    accuracy = {}
    for (name, encoder), ax in zip(encoders.items(), figure.subplots(1, 2), strict=True):
        classifier = make_pipeline(encoder, KNeighborsClassifier(10)).fit(data.train, data.labels)
        accuracy[name] = classifier.score(data.new, data.new_labels)
        title = f"{name}: {accuracy[name]:.0%} recognised"
        named = {"xlabel": "first number", "ylabel": "second number", "title": title}
        plots.latent_scatter(encoder.transform(data.new), data.new_labels, ax=ax, **named)
    figure.savefig(out / "codes.png")
    return table(f"Share of new images of {data.name} recognised from two numbers", accuracy)


if __name__ == "__main__":
    main()
