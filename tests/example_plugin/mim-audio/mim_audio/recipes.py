"""Recipes for made tones, and their twins."""

from dataclasses import replace

from mim_core import Part, RunConfig, TrainConfig


def mae_tiny():
    """A masked autoencoder: half of the time is hidden, patches are standardised."""
    return RunConfig(
        parts={
            "data": Part.of("audio:sounds"),
            "tokenizer": Part.of("audio:spectrogram", size=(64, 32), patch=(4, 8)),
            "masker": Part.of("audio:time-spans", ratio=0.5, span=2),
            "encoder": Part.of("core:vit", width=96, depth=4, heads=4),
            "decoder": Part.of("core:transformer", width=48, depth=1, heads=4),
            "target": Part.of("core:values", normalize=True),
        },
        train=TrainConfig(epochs=20, batch_size=32, lr_batch=32, base_lr=1e-3, warmup_epochs=2),
    )


def features_tiny():
    """The same encoder under another method."""
    config = mae_tiny()
    parts = {role: part for role, part in config.parts.items() if role != "target"}
    return replace(config, parts={**parts, "method": Part.of("audio:feature-prediction")})


def _twin(config):
    """20 steps of 8."""
    small = {"width": 32, "depth": 1, "heads": 2}
    parts = {
        **config.parts,
        "data": Part.of("audio:sounds", items=160),
        "encoder": Part.of("core:vit", **small),
        "decoder": Part.of("core:transformer", **small),
    }
    train = replace(config.train, epochs=1, batch_size=8, lr_batch=8, warmup_epochs=0.2, log_every=1, workers=0)
    return replace(config, parts=parts, train=train)


def mae_tiny_twin():
    """The masked autoencoder, small."""
    return _twin(mae_tiny())


def features_tiny_twin():
    """Feature prediction, small."""
    return _twin(features_tiny())
