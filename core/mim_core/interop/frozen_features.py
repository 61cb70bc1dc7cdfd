"""Units that are features of another run's encoder, or of weights of any format (4M, arXiv 2312.06647, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from mim_core.data.source import Sample
from mim_core.interop.frozen import FrozenTeacher, opened_encoder, weights_exist
from mim_core.parts.encoder import Encoded, Encoder
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.mask import Mask
from mim_core.parts.tokenizer import JoinedTokenizer, Tokenizer
from mim_core.parts.tokenizer_features import FeatureNorm, FeatureTokenizer, named


class FrozenFeatures(FeatureTokenizer):
    """What the encoder of a run, or of weights of any format that `mim-core list importers` names, makes of every unit
    of a modality. It is not trained; its weights are in every checkpoint of the run, and its parts in the run's recipe.

    Of a run of several modalities it sees one alone. The data give what the encoder was trained on: the same size, the
    same mean and deviation.
    """

    @dataclass(frozen=True)
    class Config(FrozenTeacher.Config):
        """Options of the frozen features: whose they are, and of what."""

        modality: str = ""
        """The sample's entry that the encoder looks at; of a run with one modality any name of the data, of one with
        several one of its own. Empty: the run's own, where it has one."""
        norm: FeatureNorm = "layer"
        """Of each unit, over its channels: a layer norm without weights, or none."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        tokenizer, encoder, parts = opened_encoder(config, "tokenizer")
        self.config = replace(config, parts=parts)
        self.looks = nn.ModuleDict({"tokenizer": tokenizer, "encoder": encoder})
        self.looks.requires_grad_(False)
        self.segment, own = _segment(tokenizer, config.modality)
        ((self.theirs, shape),) = own.shapes.items()
        self.modality = config.modality or self.theirs
        self.layout, self.shapes = own.layout, {self.modality: shape}
        self.ids = {self.modality: own.ids[self.theirs]} if own.ids else {}
        self.filled = config.random or weights_exist(config)
        self.begin(encoder.width, width, config.norm)
        self.train(self.training)

    def frozen(self) -> nn.Module:
        """Tokenizer and encoder of the run."""
        return self.looks

    def check_filled(self) -> None:
        """Refuses features of weights that were only drawn, where the ones that are meant are gone.

        Raises:
            ValueError: They are gone; names the options that give them.
        """
        if not self.filled:
            where = self.config.run or self.config.weights
            raise ValueError(
                f"the weights whose features are named are not at hand: {where or 'no run and no weights are named'}; "
                "give them with --tokenizer.run FOLDER, or --tokenizer.weights FILE and --tokenizer.format NAME"
            )

    def features(self, sample: Sample) -> tuple[Float[Tensor, "B N D"], Layout]:
        """The encoder's tokens, after its final norm, of all units.

        Raises:
            ValueError: It merges units, so that there is no vector for each.
        """
        tokenizer, encoder = self.looks["tokenizer"], self.looks["encoder"]
        assert isinstance(tokenizer, Tokenizer)
        assert isinstance(encoder, Encoder)
        own = tokenizer.part(self.segment) if isinstance(tokenizer, JoinedTokenizer) else tokenizer
        x = named(sample, self.modality, self.theirs)
        weight = next(encoder.parameters())
        x = {name: value.to(weight.dtype) if value.is_floating_point() else value for name, value in x.items()}
        cut = patches = own.split(x)
        if self.segment:
            patches = Patches({self.segment: cut.values}, Layout.join({self.segment: cut.layout}))  # type: ignore[dict-item]
        tokens = tokenizer.embed(patches.values)
        nothing = Mask.nothing_hidden(len(tokens), patches.layout, tokens.device)
        encoded: Encoded = encoder(tokens, patches.layout, nothing)
        if encoded.tokens.shape[1] != cut.layout.count:
            raise ValueError(
                f"a {type(encoder).__name__} gives {encoded.tokens.shape[1]} tokens of {cut.layout.count} units, and "
                "one for each is named"
            )
        return encoded.tokens, cut.layout


def _segment(tokenizer: Tokenizer, modality: str) -> tuple[str, Tokenizer]:
    """(segment, its tokenizer) of the modality that is looked at; an empty name where there is one tokenizer alone.

    Raises:
        ValueError: Which one of several is not said, or there is no such one.
    """
    if not isinstance(tokenizer, JoinedTokenizer):
        if len(tokenizer.shapes) != 1:
            raise ValueError(f"features are of one modality, and this run's units are of {', '.join(tokenizer.shapes)}")
        return "", tokenizer
    every = {name: tuple(tokenizer.part(name).shapes) for name in tokenizer.parts}
    fitting = [name for name, shapes in every.items() if shapes == ((modality,) if modality else shapes)]
    if not fitting or (not modality and len(every) > 1):
        known = ", ".join(dict.fromkeys(shape for shapes in every.values() for shape in shapes))
        raise ValueError(f"say which of the run's modalities is looked at: --tokenizer.modality, one of {known}")
    return fitting[0], tokenizer.part(fitting[0])
