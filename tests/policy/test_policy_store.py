"""The store and its watcher: what is in force over restarts, losses, half-saved folders and damaged files."""

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import EU, HOME, LAST_ROUTE, catalogue, generation

from gateway.config import Cache, Candidate, Config, EchoUpstream, Logs, Model, Policies, Server
from gateway.errors import ConfigError
from gateway.policy.generation import Catalogue, Generation, load, read_folder
from gateway.policy.store import Activated, Broken, Store, Waiting, Watcher

LIMIT = '[[limit]]\nname = "l"\ncache = "off"\n'
STRICT, LOOSE = generation(LIMIT), generation("")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "state")


def test_a_loss_waits_and_what_was_in_force_stays_over_a_restart(store, tmp_path):
    """A limit that vanishes from the folder stays in force, also when the gateway starts anew."""
    store.propose(STRICT)
    for restarted in (store, Store(tmp_path / "state")):
        change = restarted.propose(LOOSE)
        assert isinstance(change, Waiting)
        assert (change.generation.hash, change.hash) == (STRICT.hash, LOOSE.hash)
        assert change.lost == ('the limit "l" (policies/p0.toml:2)',)


def test_an_approved_loss_takes_effect_once(store):
    """`policy apply` lets exactly that generation pass, once; the same loss later waits again."""
    store.propose(STRICT)
    store.approve(LOOSE)
    assert store.propose(LOOSE) == Activated(LOOSE)
    store.propose(STRICT)
    assert isinstance(store.propose(LOOSE), Waiting)


def test_an_approval_is_for_one_generation_only(store):
    """Approving one change does not approve another that the folder has meanwhile."""
    store.propose(STRICT)
    store.approve(generation('[log]\ntext_up_to = "public"'))
    assert isinstance(store.propose(LOOSE), Waiting)


def test_a_gain_takes_effect_at_once(store):
    """What only adds limits needs no approval."""
    store.propose(LOOSE)
    assert store.propose(STRICT) == Activated(STRICT)
    assert store.active().hash == STRICT.hash


def test_policies_that_wait_do_not_hold_back_the_config(store):
    """While a loss waits, the old policies apply over the new catalogue, and are archived under that hash."""
    store.propose(STRICT)
    change = store.propose(generation("", options=[HOME, EU]))
    assert change.generation.catalogue.upstreams == ("home", "eu-api")
    assert [limit.name for limit in change.generation.limits] == ["l"]
    assert store.active().hash == change.generation.hash


def test_policies_that_wait_and_no_longer_fit_are_told(store):
    """When the old policies name an upstream that the config lost, nothing is guessed: both faults are told."""
    store.propose(generation('[[limit]]\nname = "l"\nnever = { upstream = "us-api" }\n'))
    with pytest.raises(ConfigError, match=r"(?s)gateway policy apply.*unknown upstream \"us-api\""):
        store.propose(generation("", options=[HOME, EU]))


def damage_archive(folder):
    (folder / f"{STRICT.hash}.json").write_bytes(b"{")


def damage_active(folder):
    (folder / "active").write_text("not a hash")


def lose_active(folder):
    (folder / "active").unlink()


def lose_archive(folder):
    (folder / f"{STRICT.hash}.json").unlink()


@pytest.mark.parametrize("harm", [damage_archive, damage_active, lose_active, lose_archive])
def test_a_damaged_store_fails_closed_and_says_what_to_do(store, tmp_path, harm):
    """When it cannot be seen what was in force, a loss could not be seen either; only an operator's word mends that."""
    store.propose(STRICT)
    harm(tmp_path / "state")
    with pytest.raises(ConfigError, match="gateway policy apply"):
        store.propose(LOOSE)
    store.approve(LOOSE)
    assert store.propose(LOOSE) == Activated(LOOSE)


def test_an_old_generation_opens_by_its_hash(store):
    """A hash in an old log line can be opened later; an unknown or odd one is refused."""
    for made in (LOOSE, STRICT):
        store.propose(made)
    assert store.open(LOOSE.hash).files == LOOSE.files
    for odd in ("0" * 12, "../active"):
        with pytest.raises(ConfigError):
            store.open(odd)


def make_config(folder):
    echo = EchoUpstream(takes_up_to="restricted")
    return Config(
        path=str(folder / "config.toml"),
        server=Server(),
        upstreams={"echo": echo},
        local_models={},
        models={"auto": Model(candidates=(Candidate(upstream="echo"),))},
        cache=Cache(),
        logs=Logs(),
        keys=(),
        policies=Policies(default="a"),
    )


def pair(number):
    """Two files that belong together: both carry the number."""
    limit = f'[[limit]]\nname = "{{}}"\nmax_cost = {number}\n'
    return {"a.toml": 'policy = "a"\n' + LAST_ROUTE + limit.format("in a"), "b.toml": 'policy = "b"\n' + limit.format("in b")}


class Folder:
    """A policy folder on disk, every save of which moves its time stamp, as an editor's does."""

    _times = itertools.count(1)

    def __init__(self, root):
        self.path = root / "policies"
        self.path.mkdir()
        self.config = make_config(root)
        self.save_all(pair(0))
        self.store = Store(root / "state")
        self.store.propose(load(self.config, self.path))

    def save(self, name, text):
        (self.path / name).write_text(text)
        time_ns = next(self._times) * 1_000_000_000
        os.utime(self.path / name, ns=(time_ns, time_ns))

    def save_all(self, files):
        for name, text in files.items():
            self.save(name, text)

    def watcher(self, read=read_folder):
        return Watcher(self.config, self.path, self.store, read=read)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def settle(watcher):
    """All that a watcher has to tell of a folder that rests."""
    return [change for _ in range(4) if (change := watcher.poll()) is not None]


def caps(generation):
    return {limit.max_cost for limit in generation.limits}


def test_nothing_is_told_while_nothing_changes(folder):
    """A folder at rest, and one whose comments alone change, tell nothing."""
    watcher = folder.watcher()
    assert settle(watcher) == []
    folder.save("a.toml", "# a comment\n" + pair(0)["a.toml"])
    assert settle(watcher) == []


def test_a_save_is_taken_at_the_second_look(folder):
    """The first sees that something changed, the second that it rests: with the time between looks, that is how long it takes."""
    watcher = folder.watcher()
    folder.save("a.toml", pair(1)["a.toml"])
    assert watcher.poll() is None
    assert isinstance(watcher.poll(), Activated)


def test_a_broken_folder_is_told_once_and_its_mending_too(folder):
    """What is wrong is told once for each content; the last good policies stay; mended, the watcher says so."""
    watcher = folder.watcher()
    folder.save("a.toml", "policy = ")
    (told,) = settle(watcher)
    assert isinstance(told, Broken)
    assert told.problems[0].place == "policies/a.toml:1:10"
    folder.save("a.toml", "policy = ")
    assert settle(watcher) == []
    folder.save("a.toml", pair(0)["a.toml"])
    assert [type(change) for change in settle(watcher)] == [Activated]


def test_a_vanished_file_waits_until_it_is_approved(folder):
    """A file that is gone keeps its limits in force until `policy apply`, which the watcher notices."""
    watcher = folder.watcher()
    (folder.path / "b.toml").unlink()
    (waiting,) = settle(watcher)
    assert isinstance(waiting, Waiting)
    assert settle(watcher) == []
    folder.store.approve(load(folder.config, folder.path))
    assert [change.generation.hash for change in settle(watcher)] == [waiting.hash]


def test_a_vanished_folder_is_told_and_changes_nothing(folder):
    """A folder that is not there, perhaps for a moment of a deployment, leaves everything in force."""
    watcher = folder.watcher()
    folder.path.rename(folder.path.with_name("gone"))
    (told,) = settle(watcher)
    assert isinstance(told, Broken)
    assert caps(folder.store.active()) == {0}


def test_two_hundred_saves_in_the_middle_of_reading_never_activate_a_half(folder):
    """Two files that are saved while they are being read come into force together or not at all."""
    numbers = iter(range(1, 201))
    reads = []

    def read(path):
        before = read_folder(path)
        if (number := next(numbers, None)) is not None:
            folder.save_all(pair(number))
        after = read_folder(path)
        reads.append(after)
        return {"a.toml": before["a.toml"], "b.toml": after["b.toml"]}

    watcher = folder.watcher(read)
    folder.save_all(pair(1))
    activated = [change.generation for _ in range(1000) if (change := watcher.poll()) is not None]
    assert len(reads) > 200
    assert [caps(generation) for generation in activated] == [{200}]


@given(steps=st.lists(st.sampled_from(["a", "b", "poll"]), max_size=30))
def test_only_what_rested_for_two_polls_comes_into_force(tmp_path_factory, steps):
    """However saves and polls interleave, what is activated stood in the folder, unmoved, at two polls running."""
    folder = Folder(tmp_path_factory.mktemp("w"))
    watcher = folder.watcher()
    stood = [None, None]
    for number, step in enumerate(steps, 1):
        if step == "poll":
            stood = [stood[1], read_folder(folder.path)]
            if (change := watcher.poll()) is not None:
                assert change.generation.files == stood[0] == stood[1]
        else:
            folder.save(f"{step}.toml", pair(number)[f"{step}.toml"])


def test_a_catalogue_is_what_config_offers(tmp_path):
    """Upstream tags, candidates and the policies that config counts on all reach the generation."""
    made = Catalogue.of(make_config(tmp_path))
    assert made.models["auto"][0].name == "echo/auto"
    assert [binding.policy for binding in made.bindings] == ["a"]
    assert Generation(pair(1), made).options_for("auto") == made.models["auto"]
    assert catalogue().upstreams == ("home", "eu-api", "us-api")
