"""The command line: what is given wrong is told with its mend and exit status 2, never by a traceback."""

from pathlib import Path

import pytest

from gateway import cli

CONFIG = '[models.m]\ncandidates = []\nsubstitutable = true\n[policies]\ndefault = "p"\n[cache]\nsemantic = false\n'
POLICY = 'policy = "p"\n[[route]]\nname = "all"\norder_by = "cost"\n'


@pytest.fixture
def gateway(tmp_path, monkeypatch, capsys):
    """Run the command in a folder with a config; gives exit status and what was said on stderr."""
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/p.toml").write_text(POLICY)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["gateway", *words])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        return exited.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("base_url", "noted"),
    [("https://api.example.org", True), ("https://api.example.org/", True), ("https://api.example.org/v1", False)],
)
def test_an_upstream_without_a_path_is_noted(gateway, monkeypatch, capsys, base_url, noted):
    """The commonest slip: everything would be 404. It is a note, since an API may stand there."""
    upstream = f'[upstreams.far]\nkind = "openai"\nbase_url = "{base_url}"\nzone = "far"\ntakes_up_to = "public"\n'
    Path("config.toml").write_text(CONFIG + upstream)
    monkeypatch.setattr("sys.argv", ["gateway", "check"])
    cli.main()
    assert ("note: far: base_url ends without a path; most APIs stand under /v1" in capsys.readouterr().out) is noted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("explain", "request.json"), "request.json: cannot be read: No such file or directory"),
        (("explain", "policies"), "policies: cannot be read: Is a directory"),
        (("explain",), "Missing argument 'REQUEST_ID|FILE|-'"),
        (("logs", "tail", "--lines", "-4"), "'--lines'"),
        (("logs", "tail", "--event", "cache.hits"), 'no event is called "cache.hits"; did you mean "cache.hit"?'),
        (("logs", "tail", "--event", "upstreams"), 'no event is called "upstreams"; did you mean "upstream"?'),
        (("logs", "tail", "--event", "xyzzy"), 'no event is called "xyzzy"; known: cache.hit, cache.miss, data.purged, '),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_what_is_given_wrong_is_told(gateway, words, said):
    """The exit status is 2."""
    status, told = gateway(*words)
    assert (status, said in told) == (2, True), told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--event", "cache"], "no line with event cache"),
        (["--request", "req_2"], "no line with request id req_2"),
        (["--event", "token", "--request", "req_1"], "no line with event token and request id req_1"),
        (["--event", "request.closed"], ""),
        (["--event", "request"], ""),
    ],
)
def test_a_tail_that_finds_nothing_says_so(gateway, monkeypatch, capsys, words, said):
    """On standard error; a kind of event and its full name are both known words."""
    folder = Path("state/logs")
    folder.mkdir(parents=True)
    line = '{"time":"2026-11-23T06:38:35.074197Z","event":"request.closed","level":"info","request_id":"req_1"}\n'
    (folder / "front0-20261123T063835-0.jsonl").write_text(line)
    Path("config.toml").write_text(CONFIG + '[server]\nstate_dir = "state"\n')
    monkeypatch.setattr("sys.argv", ["gateway", "logs", "tail", *words])
    cli.main()
    told = capsys.readouterr()
    assert (said in told.err, bool(told.err), told.out == line) == (True, bool(said), not said)


@pytest.mark.parametrize(("model", "noted"), [("mm", True), ("m", False)])
def test_a_purge_of_a_model_that_nobody_has_is_noted(gateway, monkeypatch, capsys, model, noted):
    """It is no error: answers may be kept under a name that the config has lost."""
    monkeypatch.setattr("sys.argv", ["gateway", "purge", "--model", model, "--dry-run"])
    cli.main()
    assert ('no model "mm"; did you mean "m"?' in capsys.readouterr().err) is noted
