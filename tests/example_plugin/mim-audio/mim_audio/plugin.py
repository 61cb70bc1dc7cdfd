"""What mim-audio brings to mim-core. Imports no torch: every part is a lazy reference."""

from mim_core import Card, hookimpl

AUDIO_MAE = "Audio-MAE, arXiv 2207.06405"


@hookimpl
def mim_register_tokenizers(register):
    """Patches of spectrograms."""
    card = Card("Patches of a log-mel spectrogram, on a grid of time and frequency.", AUDIO_MAE)
    register(name="spectrogram", load="mim_audio.tokenizer:SpectrogramTokenizer", card=card)


@hookimpl
def mim_register_maskers(register):
    """Masks that know which axis is time."""
    card = Card("Everything during some spans of time.", "SpecAugment, arXiv 1904.08779")
    register(name="time-spans", load="mim_audio.masker:TimeSpanMasker", card=card)


@hookimpl
def mim_register_methods(register):
    """One method of another kind than a masked autoencoder."""
    card = Card("Predict what a slow teacher makes of the hidden units.", "data2vec, arXiv 2202.03555")
    register(name="feature-prediction", load="mim_audio.method:FeaturePrediction", card=card)


@hookimpl
def mim_register_data(register):
    """Recordings, or made tones."""
    register(name="sounds", load="mim_audio.data:Sounds", card=Card("A folder of .wav files, or a bank of made tones."))


@hookimpl
def mim_register_recipes(register):
    """The same spectrograms under two methods."""
    for name, summary in (("mae-tiny", "A masked autoencoder"), ("features-tiny", "Feature prediction")):
        function = f"mim_audio.recipes:{name.replace('-', '_')}"
        register(name=name, load=function, twin=f"{function}_twin", card=Card(f"{summary} on made tones."))


def main():
    """The ``mim-audio`` command."""
    from mim_core.cli import main

    return main(plugin="audio")
