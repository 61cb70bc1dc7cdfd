"""What mim-audio brings to mim-core. Imports no torch: every part is a lazy reference."""

from mim_core import hookimpl

AUDIO_MAE = "Audio-MAE, arXiv 2207.06405"


@hookimpl
def mim_register_tokenizers(register):
    """Patches of spectrograms."""
    register(
        name="spectrogram",
        load="mim_audio.tokenizer:SpectrogramTokenizer",
        summary="Patches of a log-mel spectrogram, on a grid of time and frequency.",
        paper=AUDIO_MAE,
    )


@hookimpl
def mim_register_maskers(register):
    """Masks that know which axis is time."""
    register(
        name="time-spans",
        load="mim_audio.masker:TimeSpanMasker",
        summary="Everything during some spans of time.",
        paper="SpecAugment, arXiv 1904.08779",
    )


@hookimpl
def mim_register_methods(register):
    """One method of another kind than a masked autoencoder."""
    register(
        name="feature-prediction",
        load="mim_audio.method:FeaturePrediction",
        summary="Predict what a slow teacher makes of the hidden units.",
        paper="data2vec, arXiv 2202.03555",
    )


@hookimpl
def mim_register_data(register):
    """Recordings, or made tones."""
    register(name="sounds", load="mim_audio.data:Sounds", summary="A folder of .wav files, or a bank of made tones.")


@hookimpl
def mim_register_recipes(register):
    """The same spectrograms under two methods."""
    for name, summary in (("mae-tiny", "A masked autoencoder"), ("features-tiny", "Feature prediction")):
        function = f"mim_audio.recipes:{name.replace('-', '_')}"
        register(name=name, load=function, twin=f"{function}_twin", summary=f"{summary} on made tones.")


def main():
    """The ``mim-audio`` command."""
    from mim_core import main

    return main(plugin="audio")
