"""What every method keeps to."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mim_core.data.source import Sample
from mim_core.data.views import entries, kinds
from mim_core.errors import MimError
from mim_core.evaluation.features import extract
from mim_core.evaluation.report import write_report
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, open_source
from mim_core.methods.masked_autoencoder import Prepared
from mim_core.methods.method import Features, Method, Outcome
from mim_core.parts.encoder import Encoder
from mim_core.parts.mask import Mask
from mim_core.parts.tokenizer import Tokenizer
from mim_core.ranks.world import alone
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.resolve import load_recipe
from mim_core.recipes.twins import STEPS
from mim_core.runs.load import load_run
from mim_core.testing.checks import (
    Contract,
    equal,
    near,
    noise,
    on_gpu,
    saying,
    seeded,
    shapes,
    takes_seconds,
    tensors,
    to_gpu,
    unchecked,
)
from mim_core.training import loop
from mim_core.training.bench import measure
from mim_core.training.plan import plan_rows


class MethodContract(Contract):
    """What every method keeps to, in training mode unless said otherwise.

    Attributes:
        recipe: A registered recipe, whose small twin is tried; or give `make_method`.
        rows: Samples in a batch.
        steps: AdamW steps on one batch, after which the loss must be lower.
        rate: Their learning rate.
        keyed: Other keys prepare a batch otherwise; false where nothing is drawn, as when the future is foretold.
        tokens: Tokens that `encode` gives, where that is not one for every unit: of an encoder that merges units.
        moving: Endings of the names of buffers that `forward` may change in training: BatchNorm's statistics.
    """

    kind: ClassVar[str] = "methods"
    recipe: ClassVar[str] = ""
    rows: ClassVar[int] = 8
    steps: ClassVar[int] = 10
    rate: ClassVar[float] = 1e-3
    keyed: ClassVar[bool] = True
    tokens: ClassVar[int | None] = None
    moving: ClassVar[Sequence[str]] = ("running_mean", "running_var", "num_batches_tracked")

    def make_method(self) -> Method:
        """The method under test, small; each call gives another with the same sizes."""
        assert self.recipe, "say which recipe: recipe = 'plugin:name', or override make_method"
        return build_method(load_recipe(self.recipe, installed(), twin=True))

    def make_sample(self, method: Method, rows: int, seed: int = 0) -> Sample:
        """A batch that it takes; by default noise of the shapes that its tokenizer declares."""
        tokenizer = method.tokenizer
        assert isinstance(tokenizer, Tokenizer), "the method has no tokenizer: override make_sample"
        return noise(entries(tokenizer.shapes, method.views()), rows, seed, tokenizer.ids)

    def case(self) -> tuple[Method, Sample, Any]:
        """A method, a batch and what it prepares of it."""
        method = self.make_method().train()
        sample = self.make_sample(method, self.rows)
        return method, sample, method.prepare(sample)

    def run(self, method: Method, prepared: Any) -> Outcome:
        """One forward pass, drop path drawn alike each time."""
        with seeded():
            outcome: Any = method(prepared)
        assert isinstance(outcome, Outcome), f"forward gives a {type(outcome).__name__}, no mim_core.Outcome"
        assert isinstance(outcome.loss, Tensor), f"the loss is a {type(outcome.loss).__name__}, no tensor"
        return outcome

    def test_prepare_has_no_gradient(self) -> None:
        """Nothing that `prepare` gives is tied to the weights."""
        _, _, prepared = self.case()
        assert not any(value.requires_grad for value in tensors(prepared)), "prepare has a gradient"

    def test_prepare_follows_from_the_keys(self) -> None:
        """The same batch is prepared alike, whatever torch's generator says; other keys hide other units, where
        ``keyed``."""
        method, sample, prepared = self.case()
        given = {name: value.clone() for name, value in sample.items()}
        with seeded(5):
            again = method.prepare(sample)
        changed = [name for name, value in given.items() if not torch.equal(value, sample[name])]
        assert not changed, f"prepare changes {', '.join(changed)} of the sample in place"
        assert equal(prepared, again), "prepare depends on more than the sample and its keys"
        other = method.prepare({**sample, "key": sample["key"] + 1})
        if self.keyed:
            assert not equal(prepared, other), "prepare ignores the keys; if nothing is drawn, set keyed = False"
        else:
            assert equal(prepared, other), "other keys prepare a batch otherwise, yet keyed is False"

    def test_forward_is_pure(self) -> None:
        """Twice the same, with no state changed."""
        method, _, prepared = self.case()
        before = {name: value.clone() for name, value in method.state_dict().items()}
        given = [value.clone() for value in tensors(prepared)]
        assert equal(self.run(method, prepared), self.run(method, prepared)), "forward gives another outcome each time"
        changed = [name for name, value in method.state_dict().items() if not torch.equal(value, before[name])]
        changed = [name for name in changed if not name.endswith(tuple(self.moving))]
        assert not changed, f"forward changes {', '.join(changed)}"
        assert equal(given, tensors(prepared)), "forward changes what was prepared"

    def test_outcome(self) -> None:
        """A finite scalar loss in float32, finite gradients for every weight that is trained."""
        method, _, prepared = self.case()
        method.eval()  # drop path may drop all of a small batch, and a block then has no gradient
        outcome = self.run(method, prepared)
        assert outcome.loss.shape == (), f"the loss is {tuple(outcome.loss.shape)}, no scalar"
        assert outcome.loss.dtype == torch.float32, f"the loss is {outcome.loss.dtype}"
        outcome.loss.backward()
        trained = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
        idle = [name for name, grad in trained.items() if grad is None]
        assert not idle, f"not used by forward, which DDP refuses: {', '.join(idle)}"
        broken = [name for name, grad in trained.items() if grad is not None and not bool(grad.isfinite().all())]
        assert not broken, f"gradients that are not finite: {', '.join(broken)}"
        assert bool(outcome.loss.isfinite()), "the loss is not finite"

    def test_shapes_are_static(self) -> None:
        """Two batches of a size give the same shapes."""
        method, _, prepared = self.case()
        other = method.prepare(self.make_sample(method, self.rows, seed=1))
        assert shapes(prepared) == shapes(other), "what is prepared has other shapes for another batch"
        assert shapes(self.run(method, prepared)) == shapes(self.run(method, other)), "so has the outcome"

    @takes_seconds
    def test_forward_compiles(self) -> None:
        """Dynamo traces all of `forward` as one graph, which gives the same loss, and a second batch needs no new
        one."""
        method, _, prepared = self.case()
        other = method.prepare(self.make_sample(method, self.rows, seed=1))
        wanted, second = self.run(method, prepared).loss, self.run(method, other).loss
        torch._dynamo.reset()
        try:
            with unchecked(), seeded(), saying("forward does not compile as one graph"):
                compiled: Any = torch.compile(method, fullgraph=True, backend="eager")
                loss = compiled(prepared).loss
            near(loss, wanted, "forward, compiled, gives another loss", 1e-5, 1e-6)
            again = saying("forward compiles anew for a second batch of the same size")
            with unchecked(), seeded(), torch.compiler.set_stance("fail_on_recompile"), again:
                loss = compiled(other).loss
            near(loss, second, "forward, compiled, gives another loss for a second batch", 1e-5, 1e-6)
        finally:
            torch._dynamo.reset()

    def test_state_dict_round_trip(self) -> None:
        """Another copy with the same weights gives the same outcome, to the bit."""
        method, _, prepared = self.case()
        other = self.make_method().train()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.1)
        assert not torch.equal(self.run(other, prepared).loss, self.run(method, prepared).loss), "weights do not count"
        state = {name: value.clone() for name, value in method.state_dict().items()}
        other.load_state_dict(state, strict=True)
        assert equal(self.run(method, prepared), self.run(other, prepared)), "the state dict does not hold everything"

    def test_encode(self) -> None:
        """Tokens [B, N, D], one for every unit or as many as ``tokens`` says, pooled [B, D], prefix [B, P, D]; nothing
        is hidden, whatever the keys; a batch of 1 gives the row of the whole batch."""
        method, sample, _ = self.case()
        method.eval()
        features = self._encoded(method, sample)
        rows, units, width = features.tokens.shape
        assert rows == self.rows, f"encode gives tokens of {rows} samples for {self.rows}"
        tokenizer = method.tokenizer
        if isinstance(tokenizer, Tokenizer):
            count = tokenizer.layout.count
            assert units == (count if self.tokens is None else self.tokens), (
                f"encode gives {units} tokens of the {count} units: it must hide nothing; if units are merged, say in "
                "tokens how many come out"
            )
        assert features.pooled.shape == (rows, width), f"pooled is {tuple(features.pooled.shape)}, not {(rows, width)}"
        prefix = tuple(features.prefix.shape)
        assert (prefix[0], prefix[-1], len(prefix)) == (rows, width, 3), f"prefix is {prefix}, not [B, P, D]"
        if isinstance(encoder := getattr(method, "encoder", None), Encoder):
            assert prefix[1] == encoder.prefix, (
                f"encode gives {prefix[1]} prefix tokens, and the encoder says {encoder.prefix} in prefix"
            )
        alone = self._encoded(method, {name: value[3:4] for name, value in sample.items()})
        other = self._encoded(method, {**sample, "key": sample["key"] + 1})
        for name in ("tokens", "pooled", "prefix"):
            whole: Tensor = getattr(features, name)
            assert bool(whole.isfinite().all()), f"encode: {name} are not finite"
            near(getattr(alone, name), whole[3:4], f"encode gives a sample alone other {name} than in a batch")
            near(getattr(other, name), whole, f"encode gives other {name} with other keys: it must hide nothing")

    def _encoded(self, method: Method, sample: Sample) -> Features:
        with torch.no_grad():
            features: Any = method.encode(sample)
        assert isinstance(features, Features), f"encode gives a {type(features).__name__}, no mim_core.Features"
        assert features.tokens.ndim == 3, f"encode gives tokens {tuple(features.tokens.shape)}, not [B, N, D]"
        return features

    def test_samples_are_coupled_only_if_said(self) -> None:
        """Where ``couples_batch`` is False, the loss of samples that are masked alike is the mean of what each has
        alone, weighted by `shares`: a batch may be split for accumulation. In evaluation mode, where BatchNorm couples
        nothing."""
        method, sample, _ = self.case()
        if method.couples_batch:
            return
        method.eval()
        sample = {**sample, "key": sample["key"][:1].expand(self.rows).clone()}
        rows = [{name: value[row : row + 1] for name, value in sample.items()} for row in range(self.rows)]
        prepared = method.prepare(sample)
        with torch.no_grad():
            whole = self.run(method, prepared).loss
            alone = torch.stack([self.run(method, method.prepare(row)).loss for row in rows])
        near(
            whole,
            (alone * self.shares(prepared)).sum(),
            "the loss of a batch is not the mean of its samples' losses, yet couples_batch is False",
        )

    def shares(self, prepared: Any) -> Tensor:
        """Share of each sample in the loss of a batch, float32 [B], summing to one. Equal, but where the weights of a
        `Prepared` are others: of samples with absent units fewer answers count."""
        even = torch.full((self.rows,), 1 / self.rows)
        if not isinstance(prepared, Prepared):
            return even
        heads = [weight.reshape(self.rows, -1).sum(dim=1) for weight in prepared.weights.values()]
        alike = all(torch.allclose(heads[0], other) for other in heads[1:])
        return heads[0] if alike else even

    def test_trees(self) -> None:
        """What is prepared, and the outcome, are pytrees: FSDP2's hooks and ``tree_map`` see the tensors inside."""
        method, _, prepared = self.case()
        outcome = self.run(method, prepared)
        for value in (prepared, outcome):
            leaves = pytree.tree_leaves(value)
            hidden = [type(leaf).__name__ for leaf in leaves if leaf is value]
            assert not hidden, f"{hidden} is no pytree; mark it with mim_core.parts.layout.tensor_tree"
            copied = pytree.tree_map_only(Tensor, lambda tensor: tensor.clone(), value)
            assert type(copied) is type(value), f"{type(value).__name__} comes back as {type(copied).__name__}"
            assert equal(copied, value), "tree_map loses tensors"
        copied = pytree.tree_map_only(Tensor, lambda tensor: tensor.clone(), prepared)
        assert equal(self.run(method, copied), outcome), "a copy of what was prepared gives another outcome"

    @takes_seconds
    def test_loss_falls(self) -> None:
        """A few AdamW steps on one batch lower its loss."""
        method, _, prepared = self.case()
        optimizer = torch.optim.AdamW(method.parameters(), lr=self.rate)
        losses = []
        for _ in range(self.steps + 1):
            loss = self.run(method, prepared).loss
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step(len(losses) / (self.steps + 1))
        assert losses[-1] < losses[0], f"the loss goes from {losses[0]:.4f} to {losses[-1]:.4f}"

    def train_steps(self, method: Method, optimizer: torch.optim.Optimizer, steps: range) -> None:
        """Optimizer steps, each on a batch of its own."""
        for step in steps:
            sample = self.make_sample(method, self.rows, seed=step)
            prepared = method.prepare(sample, step=step, progress=step / 4)
            optimizer.zero_grad()
            self.run(method, prepared).loss.backward()
            optimizer.step()
            method.after_step((step + 1) / 4)

    @takes_seconds
    def test_resumes_to_the_bit(self) -> None:
        """Two steps, another copy with the states of method and optimizer, two more: the same weights as four steps."""
        with seeded():
            whole = self.make_method().train()
        begun = {name: value.clone() for name, value in whole.state_dict().items()}
        half, rest = self.make_method().train(), self.make_method().train()
        half.load_state_dict(begun, strict=True)
        optimizers = [torch.optim.AdamW(method.parameters(), lr=self.rate) for method in (whole, half, rest)]
        self.train_steps(whole, optimizers[0], range(4))
        self.train_steps(half, optimizers[1], range(2))
        rest.load_state_dict({name: value.clone() for name, value in half.state_dict().items()}, strict=True)
        optimizers[2].load_state_dict(optimizers[1].state_dict())
        self.train_steps(rest, optimizers[2], range(2, 4))
        weights = rest.state_dict()
        differ = [name for name, value in whole.state_dict().items() if not torch.equal(value, weights[name])]
        assert not differ, f"a run that was resumed ends with other {', '.join(differ[:3])}: state outside state_dict?"

    def test_row_does_not_depend_on_the_batch(self) -> None:
        """At the same step a sample alone, or the two of one item, hides the units that it hides in a batch."""
        method, sample, _ = self.case()
        size = 2 if "pair" in kinds(method.views()) else 1
        whole = method.prepare(sample, step=3)
        alone = method.prepare({name: value[2 : 2 + size] for name, value in sample.items()}, step=3)
        for one, other in zip(self.masks_in(whole), self.masks_in(alone), strict=True):
            each = len(other.hidden) // size
            rows = one.hidden[2 * each : (2 + size) * each]
            assert torch.equal(rows, other.hidden), "a sample alone is masked otherwise"

    @takes_seconds
    def test_commands_take_its_runs(self) -> None:
        """Of a recipe: its twin is planned, trained for two steps, measured as `bench` does it, and opened again; then
        a report is written and samples are encoded as `evaluate` does it."""
        if not self.recipe:
            return
        config = load_recipe(self.recipe, installed(), twin=True)
        epochs = config.train.epochs * 2 / STEPS
        train = replace(config.train, workers=0, epochs=epochs, warmup_epochs=0.0, schedule="constant", milestones=())
        config = replace(config, train=train)
        with unchecked(), tempfile.TemporaryDirectory(prefix="mim-contract-") as folder:  # as users run them
            self.check_run(config, Path(folder) / "run")

    def check_run(self, config: ResolvedRun, folder: Path) -> None:
        """The commands one after the other, on a run in this folder."""
        registry = installed()
        run = loop.start(config, folder, registry)
        with saying("--dry-run"):
            assert {"parameters", "operations", "steps"} <= set(plan_rows(run)), "the plan lacks a row"
        with saying("pretrain"):
            assert loop.train(run, quiet=True), "two steps did not come to their end"
        with saying("bench"):
            speed = measure(config, registry, alone(run.device), 0.01, lambda line: None).samples_per_second
        assert speed > 0, "bench measured no sample"
        opened, method, _ = load_run(folder, registry)
        with saying("show"):
            assert write_report(folder, registry, samples=2).stat().st_size > 0, "the report is empty"
        source = open_source(opened, method.tokenizer)  # type: ignore[arg-type]
        try:
            split = source.labelled("test")
        except MimError:  # data without labels
            return
        some = torch.arange(min(3, len(split.labels)))
        with saying("evaluate"):
            rows = extract(method, source, split, opened.evaluate, torch.device("cpu"), some)
        assert bool(rows.isfinite().all()), "features of held-out samples are not finite"

    def masks_in(self, prepared: Any) -> list[Mask]:
        """The masks in what was prepared."""
        leaves = pytree.tree_leaves(prepared, is_leaf=lambda value: isinstance(value, Mask))
        return [leaf for leaf in leaves if isinstance(leaf, Mask)]

    @on_gpu
    def test_gpu_equals_cpu(self) -> None:
        """The same masks on a GPU to the bit, and the same loss."""
        method, sample, prepared = self.case()
        method.eval()
        here = self.run(method, prepared).loss
        gpu_batch = method.cuda().prepare(to_gpu(sample))
        assert all(value.is_cuda for value in tensors(gpu_batch)), "what is prepared left the GPU"
        for one, other in zip(self.masks_in(prepared), self.masks_in(gpu_batch), strict=True):
            assert torch.equal(one.hidden, other.hidden.cpu()), "masks on a GPU differ"
        near(self.run(method, gpu_batch).loss.cpu(), here, "the loss is another on a GPU", 1e-3, 1e-4)
