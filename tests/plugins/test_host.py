"""The plugin host: one plugin's fault never costs another, is never silent, and always names who and what."""

import sys
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
from mim_core.errors import MimError
from mim_core.host import loading
from mim_core.host.hookspecs import hookimpl
from mim_core.host.loading import Candidate, load
from mim_core.host.registry import Registry
from mim_core.parts.masker import Masker, RandomMasker
from mim_core.testing import unchecked
from mim_core.version import PLUGIN_API, __version__


def masker_hook(*names, load="somewhere:Thing"):
    @hookimpl
    def mim_register_maskers(register):
        for name in names:
            register(name=name, load=load, summary="A masker.")

    return mim_register_maskers


def record(registry, distribution):
    return next(r for r in registry.plugins if r.distribution == distribution)


def load_with_a_good_one(plugin, bad) -> Registry:
    """The bad plugin between two good ones, which must not suffer."""
    first = plugin("aaa", mim_register_maskers=masker_hook("first"))
    last = plugin("zzz", mim_register_maskers=masker_hook("last"))
    registry = load([first, bad, last], environ={})
    assert registry.get("maskers", "first").full_name == "aaa:first"
    assert registry.get("maskers", "last").full_name == "zzz:last"
    assert record(registry, "mim-aaa").failure is None
    assert record(registry, "mim-zzz").failure is None
    assert record(registry, "mim-zzz").counts == {"maskers": 1}
    return registry


def failure_of(registry, bad: Candidate) -> str:
    """Why the bad plugin is not used; nothing of it may be left, in the registry or among the observers."""
    found = record(registry, bad.distribution)
    assert found.failure is not None
    assert "Traceback" in found.traceback
    assert found.counts == {}
    assert not [entry for entry in registry.entries if entry.plugin == bad.name]
    implementations = registry.hooks.mim_run_started.get_hookimpls()
    assert not [impl for impl in implementations if impl.plugin_name == bad.name]
    return found.failure


# ---- faults of one plugin --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["raise RuntimeError('no such [device]')", "import not_there", "raise SystemExit(3)"])
def test_raises_on_import(plugin, tmp_path, monkeypatch, line):
    (tmp_path / "raises_here.py").write_text(f"{line}  # the line that a traceback should show\n")
    monkeypatch.syspath_prepend(tmp_path)
    bad = Candidate("bad", "mim-bad", "1.0", "raises_here")
    registry = load_with_a_good_one(plugin, bad)
    assert any(text in failure_of(registry, bad) for text in ("no such [device]", "not_there", "SystemExit: 3"))
    assert "the line that a traceback should show" in record(registry, "mim-bad").traceback


def test_misspelt_hook_names_the_nearest(plugin):
    bad = plugin("bad", mim_register_masker=masker_hook("lost"))
    failure = failure_of(load_with_a_good_one(plugin, bad), bad)
    assert "'mim_register_masker', which is no hook" in failure
    assert "Did you mean 'mim_register_maskers'?" in failure


def test_optional_hook_of_another_version_is_allowed(plugin):
    @hookimpl(optionalhook=True)
    def mim_register_schedules(register):
        raise AssertionError("this core has no such hook")

    new = plugin("new", mim_register_schedules=mim_register_schedules, mim_register_maskers=masker_hook("x"))
    assert record(load([new], environ={}), "mim-new").failure is None


def test_forgotten_marker_is_found(plugin):
    def mim_register_targets(register):
        raise AssertionError("never called: it is not marked")

    bad = plugin("bad", mim_register_maskers=masker_hook("m"), mim_register_targets=mim_register_targets)
    failure = failure_of(load_with_a_good_one(plugin, bad), bad)
    assert "mim_register_targets" in failure
    assert "hookimpl" in failure


def test_wrong_signature_is_unregistered_wholly(plugin):
    @hookimpl
    def mim_run_started(run):
        raise AssertionError("an observer of a plugin that is not used")

    @hookimpl
    def mim_register_targets(register, colour):
        raise AssertionError("cannot be called")

    # pluggy registers the hooks in the order of their names until one does not fit
    bad = plugin(
        "bad",
        mim_register_maskers=masker_hook("m"),
        mim_register_targets=mim_register_targets,
        mim_run_started=mim_run_started,
    )
    registry = load_with_a_good_one(plugin, bad)
    assert "colour" in failure_of(registry, bad)
    registry.hooks.mim_run_started(run=SimpleNamespace(train=SimpleNamespace(track=())))  # reaches no one


SIGNATURES = {
    "more than is passed": (lambda register, colour: None, "takes 'colour', which that hook does not pass"),
    "by keyword": (lambda *, register: None, "takes 'register', by keyword alone"),
}


@pytest.mark.parametrize("title", SIGNATURES)
def test_a_hook_that_cannot_be_called(plugin, title):
    function, said = SIGNATURES[title]
    bad = plugin("bad", mim_register_maskers=hookimpl(function, specname="mim_register_maskers"))
    assert f"its mim_register_maskers {said}" in failure_of(load_with_a_good_one(plugin, bad), bad)


def test_hooks_that_take_less_or_have_defaults(plugin):
    @hookimpl
    def mim_register_maskers(register, colour="red"):
        register(name=colour, load="a:B", summary="Named by its default.")

    @hookimpl
    def mim_run_started():
        pass

    good = plugin("good", mim_register_maskers=mim_register_maskers, mim_run_started=mim_run_started)
    registry = load([good], environ={})
    assert record(registry, "mim-good").failure is None
    assert registry.get("maskers", "good:red")


def test_a_wrapper_is_refused(plugin):
    @hookimpl(wrapper=True)
    def mim_register_maskers(register):
        return (yield)

    bad = plugin("bad", mim_register_maskers=mim_register_maskers)
    assert "mim_register_maskers is marked as a wrapper" in failure_of(load_with_a_good_one(plugin, bad), bad)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "Bad_1"}, "its entry point is named 'Bad_1'; a plugin's name holds lower-case letters"),
        ({"module": "fake_bad:plugin"}, "must name a module alone, such as 'fake_bad'"),
        ({"module": "fake_aaa"}, "its module 'fake_aaa' is that of the plugin 'aaa' already"),
        ({"requires": ("mim-core >> 1",)}, "a requirement that cannot be read: 'mim-core >> 1'"),
    ],
)
def test_announced_wrongly(plugin, changed, said):
    bad = replace(plugin("bad", mim_register_maskers=masker_hook("m")), **changed)
    assert said in failure_of(load_with_a_good_one(plugin, bad), bad)


class Unsayable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def test_an_error_without_words_is_named_all_the_same(plugin):
    @hookimpl
    def mim_register_maskers(register):
        raise Unsayable

    bad = plugin("bad", mim_register_maskers=mim_register_maskers)
    registry = load([bad, plugin("zzz", mim_register_maskers=masker_hook("m"))], environ={})
    assert record(registry, "mim-bad").failure == "Unsayable: its message cannot be read"
    assert record(registry, "mim-bad").traceback
    assert registry.get("maskers", "zzz:m")


def test_a_long_error_is_one_line_of_the_warning(plugin):
    @hookimpl
    def mim_register_maskers(register):
        raise RuntimeError("many\nlines\n" + "x" * 5000)

    bad = plugin("bad", mim_register_maskers=mim_register_maskers)
    failure = failure_of(load_with_a_good_one(plugin, bad), bad)
    assert failure.startswith("RuntimeError: many lines xxx")
    assert len(failure) < 400
    assert "\n" not in failure


def test_no_hook_at_all(plugin):
    bad = plugin("bad", something=1)
    failure = failure_of(load_with_a_good_one(plugin, bad), bad)
    assert "implements no hook" in failure
    assert "mim_register_maskers" in failure


def test_raising_inside_a_hook_takes_back_what_was_registered(plugin):
    @hookimpl
    def mim_register_targets(register):
        register(name="half", load="a:B", summary="Registered before the fault.")
        raise KeyError("half-way")

    bad = plugin("bad", mim_register_maskers=masker_hook("m"), mim_register_targets=mim_register_targets)
    assert "KeyError: 'half-way'" in failure_of(load_with_a_good_one(plugin, bad), bad)


def test_duplicate_name_within_a_plugin(plugin):
    bad = plugin("bad", mim_register_maskers=masker_hook("twice", "twice"))
    assert "masker 'bad:twice' is registered twice" in failure_of(load_with_a_good_one(plugin, bad), bad)


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (partial(masker_hook, "with space"), "may hold lower-case letters, digits"),
        (partial(masker_hook, "Upper"), "may hold lower-case letters, digits"),
        (partial(masker_hook, "a:b"), "may hold lower-case letters, digits"),
        (partial(masker_hook, ""), "may hold lower-case letters, digits"),
        (partial(masker_hook, "fine", load="no_attribute"), "package.module:Attribute"),
    ],
)
def test_bad_registrations_are_refused(plugin, hook, said):
    bad = plugin("bad", mim_register_maskers=hook())
    assert said in failure_of(load_with_a_good_one(plugin, bad), bad)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": 3}, "masker name 3 may hold"),
        ({"summary": None}, "summary and paper of masker 'bad:m' must be text"),
        ({"paper": 3}, "summary and paper of masker 'bad:m' must be text"),
        ({"load": RandomMasker}, "load of masker 'bad:m' must read 'package.module:Attribute'"),
        ({"load": "my-package.masker:Thing"}, "load of masker 'bad:m' must read"),
    ],
)
def test_registrations_with_wrong_values(plugin, arguments, said):
    @hookimpl
    def mim_register_maskers(register):
        with unchecked():
            register(**{"name": "m", "load": "a:B", "summary": "A masker.", **arguments})

    bad = plugin("bad", mim_register_maskers=mim_register_maskers)
    assert said in failure_of(load_with_a_good_one(plugin, bad), bad)


def test_a_twin_that_is_no_reference(plugin):
    @hookimpl
    def mim_register_recipes(register):
        register(name="r", load="a:b", summary="A recipe.", twin="r_twin")

    bad = plugin("bad", mim_register_recipes=mim_register_recipes)
    assert "twin of recipe 'bad:r' must read" in failure_of(load_with_a_good_one(plugin, bad), bad)


def test_a_heading_that_is_no_text(plugin):
    @hookimpl
    def mim_register_evaluations(register):
        with unchecked():
            register(name="e", load="a:b", summary="An evaluation.", heading=3)

    bad = plugin("bad", mim_register_evaluations=mim_register_evaluations)
    assert "heading of evaluation 'bad:e' must be text" in failure_of(load_with_a_good_one(plugin, bad), bad)


def test_needs_a_newer_core(plugin):
    bad = plugin("bad", requires=["mim_core>=99", "torch"], mim_register_maskers=masker_hook("m"))
    failure = failure_of(load_with_a_good_one(plugin, bad), bad)
    assert ">=99" in failure
    assert __version__ in failure
    assert "pip install -U mim-core mim-bad" in failure


def test_requirements_of_an_extra_do_not_count(plugin):
    good = plugin("good", requires=['mim-core>=99; extra == "next"'], mim_register_maskers=masker_hook("m"))
    assert record(load([good], environ={}), "mim-good").failure is None


def test_other_plugin_interface(plugin):
    bad = plugin("bad", MIM_PLUGIN_API=PLUGIN_API + 1, mim_register_maskers=masker_hook("m"))
    assert f"interface {PLUGIN_API + 1}" in failure_of(load_with_a_good_one(plugin, bad), bad)
    good = plugin("same", MIM_PLUGIN_API=PLUGIN_API, mim_register_maskers=masker_hook("m"))
    assert record(load([good], environ={}), "mim-same").failure is None


# ---- clashes ---------------------------------------------------------------------------------------------------------


def test_one_entry_point_name_from_two_distributions(plugin):
    one = plugin("tube", "mim-tube", "1.1", mim_register_maskers=masker_hook("m"))
    other = plugin("tube", "tube-masking", "2.2", mim_register_maskers=masker_hook("m"))
    registry = load([one, other], environ={})
    failure = record(registry, "tube-masking").failure
    assert failure is not None
    assert "'tube'" in failure
    assert "mim-tube 1.1" in failure
    assert record(registry, "mim-tube").failure is None
    assert len(registry.of_kind("maskers", "tube")) == 1
    with pytest.raises(MimError) as error:  # and it is named again where a name is not found
        registry.get("maskers", "tube:other")
    assert "tube-masking 2.2 failed to load" in str(error.value)
    assert "mim-tube 1.1" in str(error.value)


def test_a_name_of_ours_goes_to_our_distribution(plugin):
    """Whatever comes first in the alphabet."""
    stranger = plugin("image", "acme-image", mim_register_maskers=masker_hook("m"))
    ours = plugin("image", "mim-image", mim_register_maskers=masker_hook("m"))
    registry = load([stranger, ours], environ={})
    assert record(registry, "mim-image").failure is None
    assert "already taken by mim-image" in record(registry, "acme-image").failure


def test_a_plugin_that_failed_does_not_hold_its_name(plugin):
    broken = plugin("tube", "a-tube", mim_register_maskers=masker_hook("a b"))
    good = plugin("tube", "b-tube", mim_register_maskers=masker_hook("m"))
    registry = load([broken, good], environ={})
    assert registry.get("maskers", "tube:m").origin == "b-tube 1.0"
    assert registry.plugin("tube").distribution == "b-tube"


def test_no_plugin_may_be_called_core(plugin):
    bad = plugin("core", "mim-usurper", mim_register_maskers=masker_hook("random"))
    registry = load([bad], environ={})
    failure = record(registry, "mim-usurper").failure
    assert failure is not None
    assert f"mim-core {__version__}" in failure
    assert registry.get("maskers", "core:random").load == "mim_core.parts.masker:RandomMasker"


def test_one_bare_name_in_two_plugins_is_ambiguous(plugin):
    registry = load([plugin(name, mim_register_maskers=masker_hook("tube")) for name in ("one", "two")], environ={})
    with pytest.raises(MimError) as error:
        registry.get("maskers", "tube")
    assert "one:tube, two:tube" in str(error.value)
    assert registry.get("maskers", "two:tube").plugin == "two"


# ---- what a user asks for --------------------------------------------------------------------------------------------


def test_strict_raises_at_the_first_fault(plugin):
    good = plugin("good", mim_register_maskers=masker_hook("m"))
    bad = plugin("bad", version="3.4", mim_register_maskers=masker_hook("a b"))
    with pytest.raises(MimError, match=r"mim-bad 3\.4 failed to load: .*letters, digits"):
        load([good, bad], environ={"MIM_CORE_STRICT": "1"})
    for off in ("", "0"):
        assert record(load([bad], environ={"MIM_CORE_STRICT": off}), "mim-bad").failure


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"MIM_CORE_PLUGINS": "a, c"}, {"core", "a", "c"}),
        ({"MIM_CORE_PLUGINS": ""}, {"core", "a", "b", "c"}),
        ({"MIM_CORE_DISABLE": "b"}, {"core", "a", "c"}),
        ({"MIM_CORE_PLUGINS": "a,b", "MIM_CORE_DISABLE": "a"}, {"core", "b"}),
    ],
)
def test_selection(plugin, environ, expected):
    registry = load([plugin(n, mim_register_maskers=masker_hook("m")) for n in "abc"], environ=environ)
    assert {r.name for r in registry.plugins if not r.disabled} == expected
    assert {entry.plugin for entry in registry.entries} == expected
    assert {r.name for r in registry.plugins} == {"core", "a", "b", "c"}


def test_the_core_alone(plugin):
    other = plugin("a", mim_register_maskers=masker_hook("m"))
    registry = load([other], environ={"MIM_CORE_PLUGINS": "core"})
    assert {entry.plugin for entry in registry.entries} == {"core"}
    with pytest.raises(MimError, match="MIM_CORE_DISABLE names 'core', whose parts are always there"):
        load([other], environ={"MIM_CORE_DISABLE": "core"})


def test_a_plugin_that_is_switched_off_is_not_imported():
    registry = load([Candidate("off", "mim-off", "1.0", "no_such_module")], {"MIM_CORE_DISABLE": "off"})
    assert record(registry, "mim-off").failure is None
    with pytest.raises(MimError, match="'off' is switched off by MIM_CORE_PLUGINS or MIM_CORE_DISABLE"):
        registry.get("maskers", "off:thing")


@pytest.mark.parametrize("variable", ["MIM_CORE_PLUGINS", "MIM_CORE_DISABLE"])
def test_misspelt_selection(plugin, variable):
    with pytest.raises(MimError) as error:
        load([plugin("image", mim_register_maskers=masker_hook("m"))], environ={variable: "imgae"})
    assert f"{variable} names 'imgae', which is not installed. Did you mean 'image'?" in str(error.value)


# ---- looking up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("tueb", "Did you mean 'tube'?"),
        ("mine:tueb", "Did you mean 'mine:tube'?"),
        ("video:thing", "No plugin 'video' is installed. Try: pip install \"mim-core[video]\""),
        ("vidoe:thing", "No plugin 'vidoe' is installed. Did you mean 'video'?"),
        ("checker:thing", "No plugin 'checker' is installed. Try: pip install mim-checker"),
        ("nothing-like-it", "Known: block, grid, guided, multi-block, random, region, tube."),
    ],
)
def test_unknown_name_says_what_to_do(plugin, asked, said):
    registry = load([plugin("mine", mim_register_maskers=masker_hook("tube"))], environ={})
    with pytest.raises(MimError) as error:
        registry.get("maskers", asked)
    assert str(error.value).startswith(f"Unknown masker {asked!r}.")
    assert said in str(error.value)


def test_failed_plugin_is_mentioned_where_a_name_is_missing(plugin):
    registry = load([plugin("bad", version="0.9", mim_register_maskers=masker_hook("a b"))], environ={})
    with pytest.raises(MimError) as error:
        registry.get("maskers", "lost")
    assert "mim-bad 0.9 failed to load" in str(error.value)
    assert "mim-core plugins --errors" in str(error.value)


def test_reference_that_leads_nowhere_names_the_plugin(plugin):
    for reference in ("no_such_module:Thing", "mim_core.parts.masker:NoSuchThing"):
        registry = load([plugin("bad", mim_register_maskers=masker_hook("m", load=reference))], environ={})
        with pytest.raises(MimError) as error:
            registry.get("maskers", "bad:m").resolve()
        assert reference in str(error.value)
        assert "plugin 'bad'" in str(error.value)


class NoMasker:
    pass


class GivesNoCount(Masker):
    @dataclass(frozen=True)
    class Config:
        pass

    def hide(self, layout, draw, scores):
        raise NotImplementedError


class Unstated(RandomMasker):
    @dataclass(frozen=True)
    class Config:
        ratio: float


class NoOptions(Masker):
    def count(self, layout):
        return 1

    def forward(self, layout, draw, scores=None):
        raise NotImplementedError


class WholeForward(NoOptions):
    """Gives `forward` in place of `hide`, as a masker whose queries repeat does."""

    Config = RandomMasker.Config


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("NoMasker", "is not a Masker subclass: it must inherit mim_core.Masker"),
        ("masker_hook", "is a function, no class"),
        ("GivesNoCount", "must define count"),
        ("Unstated", "has an option 'ratio' that has no default"),
        ("NoOptions", "has no Config, a frozen dataclass of its options"),
        ("WholeForward", None),
    ],
)
def test_what_a_reference_leads_to_is_looked_at(plugin, monkeypatch, part, said):
    monkeypatch.setitem(sys.modules, "parts_of_mine", sys.modules[__name__])
    registry = load([plugin("mine", mim_register_maskers=masker_hook("m", load=f"parts_of_mine:{part}"))], environ={})
    entry = registry.get("maskers", "mine:m")
    if said is None:
        assert entry.resolve() is globals()[part]
        return
    with pytest.raises(MimError) as error:
        entry.resolve()
    wanted = f"The masker 'mine:m' of the plugin 'mine' (mim-mine 1.0) cannot be used: 'parts_of_mine:{part}' {said}."
    assert str(error.value) == wanted


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import a_library_that_is_not_there", "Is everything that it needs installed?"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('wrong\\nin two lines')", "ValueError: wrong in two lines"),
    ],
)
def test_a_part_whose_module_fails(plugin, tmp_path, monkeypatch, line, said):
    (tmp_path / "fails_late.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    registry = load([plugin("mine", mim_register_maskers=masker_hook("m", load="fails_late:Thing"))], environ={})
    with pytest.raises(MimError) as error:
        registry.get("maskers", "mine:m").resolve()
    assert "masker 'mine:m' of the plugin 'mine' (mim-mine 1.0) cannot be loaded" in str(error.value)
    assert said in str(error.value)
    assert 'Its traceback: python -c "import fails_late; fails_late.Thing"' in str(error.value)


def test_a_kind_that_nobody_brings(plugin):
    registry = load([], environ={})
    with pytest.raises(
        MimError, match=r'No plugin is installed that brings recipes. Try: pip install "mim-core\[image\]"'
    ):
        registry.get("recipes", "mae")
    registry = load([plugin("mine", mim_register_maskers=masker_hook("m"))], environ={})
    with pytest.raises(MimError, match=r"No plugin that is in use brings import formats\. See: mim-core plugins"):
        registry.get("importers", "timm")


# ---- discovery -------------------------------------------------------------------------------------------------------


class FakeDistribution:
    def __init__(self, name, *points):
        from importlib.metadata import EntryPoint

        self.metadata, self.version, self.requires = {"Name": name}, "1.0", None
        self.entry_points = [EntryPoint(point, f"{point}_module", group) for group, point in points]


def test_discovery_is_sorted_and_keeps_the_first_on_the_path(monkeypatch):
    distributions = [
        FakeDistribution("mim-zebra", ("mim_core", "zebra")),
        FakeDistribution("Mim-Ape", ("mim_core", "second"), ("mim_core", "first"), ("console_scripts", "ape")),
        FakeDistribution("mim-bee", ("mim_core", "bee")),
        FakeDistribution("mim-zebra", ("mim_core", "zebra")),  # an older copy further down sys.path
        FakeDistribution("unrelated", ("pytest11", "x")),
    ]
    for order in (distributions, distributions[::-1]):
        monkeypatch.setattr(loading.metadata, "distributions", lambda order=order: iter(order))
        found = [(c.distribution, c.name) for c in loading.discover()]
        assert found == [("Mim-Ape", "first"), ("Mim-Ape", "second"), ("mim-bee", "bee"), ("mim-zebra", "zebra")]


def test_installed_is_made_once_and_warns_once(plugin, monkeypatch, capsys):
    calls = []
    bad = plugin("bad", mim_register_maskers=masker_hook("a b"))
    monkeypatch.setattr(loading, "discover", lambda: calls.append(1) or [bad])
    loading.installed.cache_clear()
    try:
        first = loading.installed()
        assert loading.installed() is first
    finally:
        loading.installed.cache_clear()
    assert calls == [1]
    warning = capsys.readouterr().err
    assert warning.count("mim-bad 1.0 is not used") == 1
    assert "mim-core plugins --errors" in warning


def test_only_the_first_rank_warns(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    loading.warn("said by rank 1")
    monkeypatch.setenv("RANK", "0")
    loading.warn("said by rank 0")
    assert capsys.readouterr().err == "mim-core: warning: said by rank 0\n"
