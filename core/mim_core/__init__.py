"""mim-core: masked modeling with replaceable parts.

This is the front door: all that a plugin needs is here, and plugins import from here alone; their tests import from
`mim_core.testing` too. Importing this package imports no torch, so that plugins stay light; names are loaded on first
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mim_core.errors import BadSample, MimError
from mim_core.host.hookspecs import hookimpl
from mim_core.version import PLUGIN_API, __version__

if TYPE_CHECKING:
    from mim_core import standard_errors as standard_errors
    from mim_core.cli import main as main
    from mim_core.commands.options import parse as parse
    from mim_core.data import collections as collections
    from mim_core.data.collections import HELD_OUT as HELD_OUT
    from mim_core.data.collections import arrange as arrange
    from mim_core.data.collections import left_out as left_out
    from mim_core.data.collections import listed_once as listed_once
    from mim_core.data.collections import split_of as split_of
    from mim_core.data.conversion import MANIFEST as MANIFEST
    from mim_core.data.conversion import PARTIAL as PARTIAL
    from mim_core.data.conversion import Conversion as Conversion
    from mim_core.data.conversion import Manifest as Manifest
    from mim_core.data.conversion import converting_alone as converting_alone
    from mim_core.data.conversion import in_processes as in_processes
    from mim_core.data.conversion import with_own_names as with_own_names
    from mim_core.data.conversion import write_file as write_file
    from mim_core.data.folders import walk_folders as walk_folders
    from mim_core.data.label_table import LABELS as LABELS
    from mim_core.data.label_table import SPLITS as SPLITS
    from mim_core.data.label_table import LabelTable as LabelTable
    from mim_core.data.label_table import arranged as arranged
    from mim_core.data.label_table import class_order as class_order
    from mim_core.data.label_table import read_label_table as read_label_table
    from mim_core.data.labelled import share_of as share_of
    from mim_core.data.loading import Readable as Readable
    from mim_core.data.loading import loader as loader
    from mim_core.data.normalise import IMAGENET_MEAN as IMAGENET_MEAN
    from mim_core.data.normalise import IMAGENET_STD as IMAGENET_STD
    from mim_core.data.normalise import Normalisation as Normalisation
    from mim_core.data.normalise import check_statistics as check_statistics
    from mim_core.data.normalise import usual_statistics as usual_statistics
    from mim_core.data.picture_limits import check_picture as check_picture
    from mim_core.data.said_once import SaidOnce as SaidOnce
    from mim_core.data.source import DataSource as DataSource
    from mim_core.data.source import Labelled as Labelled
    from mim_core.data.source import Picture as Picture
    from mim_core.data.source import PlainItems as PlainItems
    from mim_core.data.source import Sample as Sample
    from mim_core.data.source import Shown as Shown
    from mim_core.data.strong_augmentation import Strong as Strong
    from mim_core.data.table_beside import with_table_beside as with_table_beside
    from mim_core.data.table_splits import TableSplits as TableSplits
    from mim_core.data.table_splits import table_splits as table_splits
    from mim_core.data.time_limits import ITEM_SECONDS as ITEM_SECONDS
    from mim_core.data.time_limits import in_time as in_time
    from mim_core.data.viewed import Viewed as Viewed
    from mim_core.data.viewed import keys_of as keys_of
    from mim_core.data.viewed import unpaired as unpaired
    from mim_core.data.views import View as View
    from mim_core.data.views import carried as carried
    from mim_core.data.wrapped import WrappedSource as WrappedSource
    from mim_core.errors import did_you_mean as did_you_mean
    from mim_core.errors import nearest as nearest
    from mim_core.errors import one_line as one_line
    from mim_core.errors import unknown as unknown
    from mim_core.errors import warn as warn
    from mim_core.evaluation.anomaly import judge_anomalies as judge_anomalies
    from mim_core.evaluation.anomaly_frames import judge_frames as judge_frames
    from mim_core.evaluation.anomaly_maps import covering_masks as covering_masks
    from mim_core.evaluation.anomaly_metrics import aupro as aupro
    from mim_core.evaluation.anomaly_metrics import frame_auroc as frame_auroc
    from mim_core.evaluation.reconstruction import reconstruct as reconstruct
    from mim_core.evaluation.study import Study as Study
    from mim_core.host.findings import Finding as Finding
    from mim_core.host.findings import first_line as first_line
    from mim_core.host.findings import library as library
    from mim_core.host.loading import installed as installed
    from mim_core.host.registry import EvaluationRegister as EvaluationRegister
    from mim_core.host.registry import RecipeRegister as RecipeRegister
    from mim_core.host.registry import Register as Register
    from mim_core.interop import exporters as exporters
    from mim_core.interop import hugging_face as hugging_face
    from mim_core.interop import importers as importers
    from mim_core.interop.codes import CodeTokenizer as CodeTokenizer
    from mim_core.interop.codes import codes_text as codes_text
    from mim_core.interop.frozen import FrozenTeacher as FrozenTeacher
    from mim_core.interop.frozen import parts_text as parts_text
    from mim_core.interop.ssmctb import ssmctb_from as ssmctb_from
    from mim_core.interop.weight_files import is_program as is_program
    from mim_core.interop.weight_files import reason_of as reason_of
    from mim_core.interop.weights import State as State
    from mim_core.interop.weights import fill_weights as fill_weights
    from mim_core.methods.assembly import Parts as Parts
    from mim_core.methods.build import build_method as build_method
    from mim_core.methods.class_tables import confusion as confusion
    from mim_core.methods.classifier import Classifier as Classifier
    from mim_core.methods.classifier import shares_of as shares_of
    from mim_core.methods.classifier import top_share as top_share
    from mim_core.methods.masked_autoencoder import Head as Head
    from mim_core.methods.masked_autoencoder import MaskedAutoencoder as MaskedAutoencoder
    from mim_core.methods.masked_autoencoder import Prepared as Prepared
    from mim_core.methods.method import Features as Features
    from mim_core.methods.method import Method as Method
    from mim_core.methods.method import Outcome as Outcome
    from mim_core.methods.method import Record as Record
    from mim_core.methods.method import encode_all as encode_all
    from mim_core.methods.supervised import Supervised as Supervised
    from mim_core.methods.supervised import Taught as Taught
    from mim_core.methods.supervised import entry as entry
    from mim_core.parts.block_behind import block_loss as block_loss
    from mim_core.parts.block_behind import with_block as with_block
    from mim_core.parts.decoder import Decoder as Decoder
    from mim_core.parts.decoder import TransformerDecoder as TransformerDecoder
    from mim_core.parts.decoder_joint import JointAnswer as JointAnswer
    from mim_core.parts.decoder_joint import JointDecoder as JointDecoder
    from mim_core.parts.decoder_prototypes import PrototypeDecoder as PrototypeDecoder
    from mim_core.parts.encoder import Encoded as Encoded
    from mim_core.parts.encoder import Encoder as Encoder
    from mim_core.parts.encoder import check_sizes as check_sizes
    from mim_core.parts.encoder import init_transformer as init_transformer
    from mim_core.parts.encoder import token as token
    from mim_core.parts.layout import Layout as Layout
    from mim_core.parts.layout import Patches as Patches
    from mim_core.parts.layout import take as take
    from mim_core.parts.mask import Draw as Draw
    from mim_core.parts.mask import Mask as Mask
    from mim_core.parts.masked_block import SSMCTB as SSMCTB
    from mim_core.parts.masked_block import SSPCAB as SSPCAB
    from mim_core.parts.masked_block import MaskedBlock as MaskedBlock
    from mim_core.parts.masker import Masker as Masker
    from mim_core.parts.masker import Rounding as Rounding
    from mim_core.parts.masker import check_ratio as check_ratio
    from mim_core.parts.masker import hide_first as hide_first
    from mim_core.parts.masker import rounded as rounded
    from mim_core.parts.masker_guided import GuidedMasker as GuidedMasker
    from mim_core.parts.masker_guided import hide_guided as hide_guided
    from mim_core.parts.masker_region import RegionMasker as RegionMasker
    from mim_core.parts.neck import ChannelNorm as ChannelNorm
    from mim_core.parts.neck import FourLevels as FourLevels
    from mim_core.parts.neck import SimplePyramid as SimplePyramid
    from mim_core.parts.norm import BatchNorm as BatchNorm
    from mim_core.parts.position import PositionKind as PositionKind
    from mim_core.parts.position import make_position as make_position
    from mim_core.parts.position import sincos_table as sincos_table
    from mim_core.parts.schedule import Progress as Progress
    from mim_core.parts.schedule import Schedule as Schedule
    from mim_core.parts.scorer import Scorer as Scorer
    from mim_core.parts.spans import Spans as Spans
    from mim_core.parts.spans import sequence_length as sequence_length
    from mim_core.parts.target import Losses as Losses
    from mim_core.parts.target import Target as Target
    from mim_core.parts.target import ValueTarget as ValueTarget
    from mim_core.parts.target_contrast import ContrastTarget as ContrastTarget
    from mim_core.parts.target_contrast import Keys as Keys
    from mim_core.parts.target_distillation import SelfDistillationTarget as SelfDistillationTarget
    from mim_core.parts.target_features import Answers as Answers
    from mim_core.parts.target_features import FeatureTarget as FeatureTarget
    from mim_core.parts.target_ids import IdTarget as IdTarget
    from mim_core.parts.target_ranks import RankTarget as RankTarget
    from mim_core.parts.teacher import EmaTeacher as EmaTeacher
    from mim_core.parts.teacher import Lesson as Lesson
    from mim_core.parts.teacher import Student as Student
    from mim_core.parts.teacher import Teacher as Teacher
    from mim_core.parts.tokenizer import JoinedTokenizer as JoinedTokenizer
    from mim_core.parts.tokenizer import PatchTokenizer as PatchTokenizer
    from mim_core.parts.tokenizer import PlainUnits as PlainUnits
    from mim_core.parts.tokenizer import Tokenizer as Tokenizer
    from mim_core.parts.tokenizer_features import FeatureTokenizer as FeatureTokenizer
    from mim_core.parts.tokenizer_ids import BinTokenizer as BinTokenizer
    from mim_core.parts.tokenizer_ids import IdTokenizer as IdTokenizer
    from mim_core.parts.tokenizer_ids import NamedTokenizer as NamedTokenizer
    from mim_core.parts.tokenizer_ids import SequenceTokenizer as SequenceTokenizer
    from mim_core.parts.upernet import FcnHead as FcnHead
    from mim_core.parts.upernet import UperNet as UperNet
    from mim_core.parts.upernet import pixel_loss as pixel_loss
    from mim_core.parts.upernet import resized as resized
    from mim_core.randomness import bits as bits
    from mim_core.randomness import make_key as make_key
    from mim_core.randomness import name_code as name_code
    from mim_core.randomness import permutation as permutation
    from mim_core.randomness import torch_seed as torch_seed
    from mim_core.randomness import uniform as uniform
    from mim_core.ranking_scores import auroc as auroc
    from mim_core.ranking_scores import average_precision as average_precision
    from mim_core.ranks.tensors import batch_mean as batch_mean
    from mim_core.ranks.tensors import gather as gather
    from mim_core.recipes.config import EvaluateConfig as EvaluateConfig
    from mim_core.recipes.config import Part as Part
    from mim_core.recipes.config import RunConfig as RunConfig
    from mim_core.recipes.config import TrainConfig as TrainConfig
    from mim_core.recipes.options import fill as fill
    from mim_core.recipes.resolve import load_recipe as load_recipe
    from mim_core.recipes.twins import Twins as Twins
    from mim_core.recipes.twins import with_options as with_options
    from mim_core.runs.load import OpenedRun as OpenedRun
    from mim_core.runs.load import load_run as load_run
    from mim_core.scores import FINE_TUNED as FINE_TUNED
    from mim_core.scores import MAJORITY as MAJORITY
    from mim_core.scores import PRETRAINED as PRETRAINED
    from mim_core.scores import RAW as RAW
    from mim_core.scores import UNTRAINED as UNTRAINED
    from mim_core.scores import Score as Score
    from mim_core.scores import Table as Table
    from mim_core.terminal import console as console
    from mim_core.terminal import tell as tell
    from mim_core.text import counted as counted
    from mim_core.text import shown as shown
    from mim_core.text import times as times
    from mim_core.training.progress import lasting as lasting

_ROOMS = {
    "cli": ("main",),
    "commands.options": ("parse",),
    "data.collections": ("HELD_OUT", "arrange", "left_out", "listed_once", "split_of"),
    "data.conversion": (
        "MANIFEST",
        "PARTIAL",
        "Conversion",
        "Manifest",
        "converting_alone",
        "in_processes",
        "with_own_names",
        "write_file",
    ),
    "data.folders": ("walk_folders",),
    "data.label_table": ("LABELS", "SPLITS", "LabelTable", "arranged", "class_order", "read_label_table"),
    "data.labelled": ("share_of",),
    "data.loading": ("Readable", "loader"),
    "data.normalise": ("IMAGENET_MEAN", "IMAGENET_STD", "Normalisation", "check_statistics", "usual_statistics"),
    "data.picture_limits": ("check_picture",),
    "data.said_once": ("SaidOnce",),
    "data.source": ("DataSource", "Labelled", "Picture", "PlainItems", "Sample", "Shown"),
    "data.strong_augmentation": ("Strong",),
    "data.table_beside": ("with_table_beside",),
    "data.table_splits": ("TableSplits", "table_splits"),
    "data.time_limits": ("ITEM_SECONDS", "in_time"),
    "data.viewed": ("Viewed", "keys_of", "unpaired"),
    "data.views": ("View", "carried"),
    "data.wrapped": ("WrappedSource",),
    "errors": ("did_you_mean", "nearest", "one_line", "unknown", "warn"),
    "evaluation.anomaly": ("judge_anomalies",),
    "evaluation.anomaly_frames": ("judge_frames",),
    "evaluation.anomaly_maps": ("covering_masks",),
    "evaluation.anomaly_metrics": ("aupro", "frame_auroc"),
    "evaluation.reconstruction": ("reconstruct",),
    "evaluation.study": ("Study",),
    "host.findings": ("Finding", "first_line", "library"),
    "host.loading": ("installed",),
    "host.registry": ("EvaluationRegister", "RecipeRegister", "Register"),
    "interop.codes": ("CodeTokenizer", "codes_text"),
    "interop.frozen": ("FrozenTeacher", "parts_text"),
    "interop.weight_files": ("is_program", "reason_of"),
    "interop.ssmctb": ("ssmctb_from",),
    "interop.weights": ("State", "fill_weights"),
    "methods.assembly": ("Parts",),
    "methods.build": ("build_method",),
    "methods.class_tables": ("confusion",),
    "methods.classifier": ("Classifier", "shares_of", "top_share"),
    "methods.masked_autoencoder": ("Head", "MaskedAutoencoder", "Prepared"),
    "methods.method": ("Features", "Method", "Outcome", "Record", "encode_all"),
    "methods.supervised": ("Supervised", "Taught", "entry"),
    "parts.block_behind": ("block_loss", "with_block"),
    "parts.decoder": ("Decoder", "TransformerDecoder"),
    "parts.decoder_joint": ("JointAnswer", "JointDecoder"),
    "parts.decoder_prototypes": ("PrototypeDecoder",),
    "parts.encoder": ("Encoded", "Encoder", "check_sizes", "init_transformer", "token"),
    "parts.layout": ("Layout", "Patches", "take"),
    "parts.mask": ("Draw", "Mask"),
    "parts.masked_block": ("SSMCTB", "SSPCAB", "MaskedBlock"),
    "parts.masker": ("Masker", "Rounding", "check_ratio", "hide_first", "rounded"),
    "parts.masker_guided": ("GuidedMasker", "hide_guided"),
    "parts.masker_region": ("RegionMasker",),
    "parts.neck": ("ChannelNorm", "FourLevels", "SimplePyramid"),
    "parts.norm": ("BatchNorm",),
    "parts.position": ("PositionKind", "make_position", "sincos_table"),
    "parts.schedule": ("Progress", "Schedule"),
    "parts.scorer": ("Scorer",),
    "parts.spans": ("Spans", "sequence_length"),
    "parts.target": ("Losses", "Target", "ValueTarget"),
    "parts.target_contrast": ("ContrastTarget", "Keys"),
    "parts.target_distillation": ("SelfDistillationTarget",),
    "parts.target_features": ("Answers", "FeatureTarget"),
    "parts.target_ids": ("IdTarget",),
    "parts.target_ranks": ("RankTarget",),
    "parts.teacher": ("EmaTeacher", "Lesson", "Student", "Teacher"),
    "parts.tokenizer": ("JoinedTokenizer", "PatchTokenizer", "PlainUnits", "Tokenizer"),
    "parts.tokenizer_features": ("FeatureTokenizer",),
    "parts.tokenizer_ids": ("BinTokenizer", "IdTokenizer", "NamedTokenizer", "SequenceTokenizer"),
    "parts.upernet": ("FcnHead", "UperNet", "pixel_loss", "resized"),
    "randomness": ("bits", "make_key", "name_code", "permutation", "torch_seed", "uniform"),
    "ranking_scores": ("auroc", "average_precision"),
    "ranks.tensors": ("batch_mean", "gather"),
    "recipes.config": ("EvaluateConfig", "Part", "RunConfig", "TrainConfig"),
    "recipes.options": ("fill",),
    "recipes.resolve": ("load_recipe",),
    "recipes.twins": ("Twins", "with_options"),
    "runs.load": ("OpenedRun", "load_run"),
    "scores": ("FINE_TUNED", "MAJORITY", "PRETRAINED", "RAW", "Score", "Table", "UNTRAINED"),
    "terminal": ("console", "tell"),
    "text": ("counted", "shown", "times"),
    "training.progress": ("lasting",),
}
_MODULES = {
    "collections": "data.collections",
    "exporters": "interop.exporters",
    "hugging_face": "interop.hugging_face",
    "importers": "interop.importers",
    "standard_errors": "standard_errors",
}
_LAZY = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = ["PLUGIN_API", "BadSample", "MimError", "__version__", "hookimpl", *sorted({*_LAZY, *_MODULES})]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mim_core.{_MODULES[name]}")
    if name not in _LAZY:
        raise AttributeError(f"module 'mim_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mim_core.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
