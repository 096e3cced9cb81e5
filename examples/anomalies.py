"""Find anomalies: train on clean images, then single out the 3 % of new ones that are noisy.

The score of an image is minus the error of its reconstruction. Beside it, on the same images: the error of
a PCA with as many components, and an isolation forest. Of the bundled digits a PCA twice as wide finds as
much: noise has a share in every direction that is left out, but narrow ones leave out much of the digits
as well.
"""

import numpy as np
from common import start, table
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from fastae import AutoencoderOutlierDetector, plots

SHARE, NOISE = 0.03, 0.2


def main(argv=None):
    data, out = start(__doc__, argv)
    rng = np.random.default_rng(0)
    images, noisy = data.new.copy(), np.zeros(len(data.new), bool)
    noisy[rng.choice(len(images), round(SHARE * len(images)), replace=False)] = True
    images[noisy] = np.clip(images[noisy] + rng.normal(0, NOISE, images[noisy].shape), 0, 1)

    detector = AutoencoderOutlierDetector(
        SHARE, latent_dim=16, hidden_layer_sizes=(128,), **data.training(60)
    ).fit(data.train)
    pca = PCA(16, random_state=0).fit(data.train)
    forest = IsolationForest(random_state=0).fit(data.train)
    scores = {
        "autoencoder": detector.score_samples(images),
        "PCA": -((pca.inverse_transform(pca.transform(images)) - images) ** 2).mean(axis=1),
        "isolation forest": forest.score_samples(images),
    }
    # The detector's own threshold, offset_, is for the images it was trained on, whose errors are smaller.
    threshold = np.quantile(scores["autoencoder"], SHARE)
    ax = plots.anomalies(scores["autoencoder"], noisy, threshold=threshold)
    ax.figure.savefig(out / "anomalies.png")
    isolated = scores["autoencoder"] < threshold
    figures = {f"ROC AUC, {name}": roc_auc_score(~noisy, score) for name, score in scores.items()}
    figures["noisy among the isolated"] = noisy[isolated].mean()
    return table(f"{noisy.sum()} of {len(images)} new images of {data.name} are noisy", figures)


if __name__ == "__main__":
    main()
