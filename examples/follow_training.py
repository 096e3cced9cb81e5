"""Follow the training: the learning curve, and what becomes of one image over the epochs.

A callback is any object with `on_epoch_end`; this one has the trainer reconstruct an image that it is not
trained on, after every epoch.
"""

from common import start, table
from matplotlib.figure import Figure

from fastae import Adam, Dense, Network, Trainer, plots


class Follow:
    """Keeps the reconstruction of one image, as it is before the training and after each epoch."""

    def __init__(self, image):
        self.image, self.seen = image[None], []

    def on_fit_begin(self, trainer, epoch):
        self.seen = [trainer.reconstruct(self.image)[0]]

    def on_epoch_end(self, trainer, epoch, logs):
        self.seen.append(trainer.reconstruct(self.image)[0])


def main(argv=None):
    data, out = start(__doc__, argv)
    how, pixels = data.training(60), data.train.shape[1]
    net = Network(
        encoder=[Dense(128, "relu"), Dense(16)],
        decoder=[Dense(128, "relu"), Dense(pixels, "sigmoid")],
        input_shape=pixels,
    )
    trainer = Trainer(net, optimizer=Adam(how["learning_rate_init"]), batch_size=how["batch_size"], seed=0)
    follow = Follow(data.new[3])
    history = trainer.fit(
        data.train, epochs=how["max_iter"], validation_data=data.new, callbacks=[follow], verbose=1
    )

    figure = Figure(figsize=(9, 5), layout="constrained")
    curve, strip = figure.subplots(2, 1, height_ratios=[3, 1])
    losses = {"training": history.loss, "validation": history.val_loss}
    plots.learning_curve(losses, xlabel="epoch", ylabel="mean squared error", ax=curve)
    shown = [epoch for epoch in (0, 1, 2, 3, 5, 8, 13, 21, 34, 60) if epoch < len(follow.seen)]
    plots.training_strip([follow.seen[i] for i in shown], follow.image[0], epochs=shown, ax=strip)
    figure.savefig(out / "follow_training.png")
    animation = plots.training_animation(follow.seen, follow.image[0], epochs=range(len(follow.seen)))
    animation.save(out / "follow_training.gif", writer="pillow", dpi=70)
    last, first = ((follow.seen[i] - follow.image[0]) ** 2 for i in (-1, 0))
    return table(
        f"Mean squared error, {how['max_iter']} epochs of {data.name}",
        {
            "validation, first epoch": history.val_loss[0],
            "validation, last epoch": history.val_loss[-1],
            "the image, before": first.mean(),
            "the image, after": last.mean(),
        },
    )


if __name__ == "__main__":
    main()
