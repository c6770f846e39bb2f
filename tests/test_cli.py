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
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_what_is_given_wrong_is_told(gateway, words, said):
    """The exit status is 2."""
    status, told = gateway(*words)
    assert (status, said in told) == (2, True), told
