"""Options: one declaration; layers and where each value came from; errors that say what was expected."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import tomllib
from pathlib import Path

import pytest

from executors import outputs
from executors.errors import UnknownNameError, UsageError
from executors.options import ENVIRONMENT, Settings, options
from executors.redact import HIDDEN, RedactingFilter, cleaned, redact, secret_name
from executors.settings import resolve, show_config, toml
from executors.values import MismatchError, Spelled, convert

REPOSITORY = Path(__file__).parents[2]


def test_every_field_has_help_group_and_flags_of_its_own() -> None:
    flags = [flag for each in options() for flag in each.flags]
    assert len(flags) == len(set(flags))
    for each in options():
        assert each.about["help"], each.name
        assert each.about["group"], each.name
        assert each.switch or each.about["metavar"], each.name
        assert not each.about["help"].endswith("."), each.name


def test_defaults_are_those_of_the_class() -> None:
    resolved = resolve()
    assert resolved.settings == Settings()
    assert set(resolved.origins.values()) == {"default"}
    assert resolved.settings.executor == "futures"
    assert resolved.settings.chunk is None
    assert pickle.loads(pickle.dumps(resolved.settings)) == Settings()


def test_later_layers_win_and_are_named(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('chunk = 2\nworkers = 2\nretries = 2\nfsize = 2\n"max-per-dataset" = 2\n')
    resolved = resolve(
        {"workers": "4", "retries": "4", "set": ["retries=5"], "config": str(file)},
        env={f"{ENVIRONMENT}CHUNK": "3", f"{ENVIRONMENT}WORKERS": "3", f"{ENVIRONMENT}RETRIES": "3"},
        site={"limit": 1, "chunk": 1, "workers": 1, "retries": 1, "fsize": 1},
        chunk_timeout=9,
        limit=7,
    )
    s, origins = resolved.settings, resolved.origins
    assert (s.chunk_timeout, s.limit, s.fsize, s.chunk, s.workers, s.retries) == (9.0, 1, 2, 3, 4, 5)
    assert s.max_per_dataset == 2
    assert origins["chunk_timeout"] == "caller"
    assert origins["limit"] == "site"
    assert origins["fsize"] == f"file {file}"
    assert origins["chunk"] == "env COFFEA_SCALEOUT_CHUNK"
    assert origins["workers"] == "command line"
    assert origins["retries"] == "--set"
    assert origins["schema"] == "default"


def test_workflow_arguments_are_merged_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[wf_arg]\nyear = "2016"\ncut = 3\n')
    resolved = resolve(
        {"wf_arg": ["year=2022", "x=a=b"], "set": ["wf_arg.z=[1, 2]"], "config": str(file)},
        env={f"{ENVIRONMENT}WF_ARG": '{"e": 1}'},
    )
    assert resolved.settings.wf_arg == {"year": "2022", "cut": 3, "e": 1, "x": "a=b", "z": "[1, 2]"}
    assert isinstance(resolved.settings.wf_arg["year"], Spelled)
    assert resolved.origins["wf_arg.cut"].startswith("file ")
    assert resolved.origins["wf_arg.year"] == "command line"
    assert resolved.origins["wf_arg.z"] == "--set"


def test_lists_come_in_every_spelling() -> None:
    assert resolve({"only": ["a,b", "c"]}).settings.only == ("a,b", "c")  # a name may hold a comma
    assert resolve({"columns": ["Muon_*, nMuon", "run"]}).settings.columns == ("Muon_*", "nMuon", "run")
    assert resolve(env={f"{ENVIRONMENT}ONLY": "a, b"}).settings.only == ("a", "b")
    assert resolve(env={f"{ENVIRONMENT}ONLY": '["a,b"]'}).settings.only == ("a,b",)
    assert resolve({"set": ['only=["x"]']}).settings.only == ("x",)
    assert resolve(only="x", outputdir="out").settings.only == ("x",)
    assert resolve({"index": "1,2"}).settings.index == (1, 2)
    assert resolve({"index": "1"}).settings.index == (1,)
    assert resolve({"index": "0,1,0,1"}).settings.index == (0, 1, 0, 1)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"chunk": "0"}, "--chunk 0: expected at least 1"),
        ({"chunk": "1e5"}, "--chunk 1e5: expected a whole number"),
        ({"chunk": "٣"}, "--chunk ٣: expected a whole number"),
        ({"chunk": str(10**20)}, f"--chunk {10**20}: expected at most {2**53}"),
        ({"limit": "0"}, "--limit 0: expected at least 1"),
        ({"limit": "-1"}, "--limit -1: expected at least 1"),
        ({"workers": "x"}, "--workers x: expected a whole number"),
        ({"fsize": ""}, "--fsize '': expected a whole number"),
        ({"chunk_timeout": "nan"}, "--chunk-timeout nan: expected at least 0.1"),
        ({"chunk_timeout": "inf"}, "--chunk-timeout inf: expected at most"),
        ({"retries": "-1"}, "--retries -1: expected at least 0"),
        ({"log_level": "loud"}, "--log-level loud: expected one of debug, info, warning, error"),
        ({"index": "1,2,3"}, "--index 1,2,3: expected i, i,j or i,j,k,l"),
        ({"index": "a"}, "--index a: expected a list, each item a whole number"),
        ({"index": "-1"}, "--index -1: expected i, i,j or i,j,k,l"),
        ({"index": "1,2,0,5"}, "0,5 lies before 1,2"),
        ({"wf_arg": ["year"]}, "--wf-arg year: expected KEY=VALUE"),
        ({"wf_arg": ["=3"]}, "--wf-arg =3: expected KEY=VALUE"),
        ({"set": ["chunk"]}, "--set chunk: expected KEY=VALUE"),
        ({"set": ["chunk.x=3"]}, "'chunk' is not a table"),
        ({"set": ["dry_run=true"]}, "belongs on the command line: --dry-run"),
        ({"wf": "a\nb"}, "control characters"),
        ({"outputdir": "a\x00b"}, "expected a path"),
        ({"outputdir": "a\x1bb"}, "control characters"),
    ],
)
def test_a_wrong_value_says_what_is_expected(typed: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        resolve(typed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chnk = 3", "did you mean 'chunk'"),
        ('chunk = "3"', "chunk = '3': expected a whole number"),
        ("chunk = true", "expected a whole number"),
        ("chunk = 3.0", "expected a whole number"),
        ("quiet = 1", "expected true or false"),
        ('only = "x"', "expected a list"),
        ("wf_arg = 3", "expected a table"),
        ("[chunk]\nx = 1", "expected a whole number"),
        ("chunk = ", "cannot read the configuration file"),
        ("max_per_dataset = 1\nmax-per-dataset = 2", "a key is given twice"),
        ('config = "x"', "belongs on the command line: --config"),
        ("\x00", "cannot read the configuration file"),
    ],
)
def test_a_wrong_configuration_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        resolve({}, file)
    assert str(file) in str(caught.value)


def test_unreadable_configuration_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        resolve({"config": str(tmp_path / "none.toml")})
    with pytest.raises(UsageError, match="directory"):
        resolve({"config": str(tmp_path)})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read"):
        resolve({"config": str(tmp_path / "binary.toml")})


def test_an_unknown_variable_of_ours_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="COFFEA_SCALEOUT_CHUNK"):
        resolve(env={"COFFEA_SCALEOUT_CHUNKS": "3"})
    assert resolve(env={"COFFEA_SCALEOUT__TOKEN": "x", "OTHER": "y"}).settings == Settings()
    with pytest.raises(UsageError, match="env COFFEA_SCALEOUT_QUIET"):
        resolve(env={"COFFEA_SCALEOUT_QUIET": "maybe"})
    assert resolve(env={"COFFEA_SCALEOUT_QUIET": "Yes"}).settings.quiet


def test_show_config_is_toml_that_reads_back(tmp_path: Path) -> None:
    typed = {
        "wf": 'a"b\\c é 😊',
        "wf_arg": ["year=2022", "name=x y", "odd key=1"],
        "only": ["a", "b,c"],
        "index": "1,2,3,4",
        "chunk_timeout": "2.5",
        "outputdir": "out dir",
        "quiet": True,
        "postprocess": False,
    }
    first = resolve(typed)
    text = show_config(first)
    tomllib.loads(text)
    file = tmp_path / "run.toml"
    file.write_text(text)
    second = resolve({}, file)
    assert second.settings == dataclasses.replace(first.settings, wf_arg=second.settings.wf_arg)
    assert second.settings.wf_arg == {"year": 2022, "name": "x y", "odd key": 1}
    assert re.search(r"^# chunk is not set +# default$", text, re.MULTILINE)
    assert re.search(r"^quiet = true +# command line$", text, re.MULTILINE)
    for each in options():
        assert bool(re.search(rf"^(# )?{each.name}\b[. ]", text, re.MULTILINE)) == (
            each.about.get("scope") != "command"
        ), each.name


def test_what_opens_a_door_is_typed(tmp_path: Path) -> None:
    """``--insecure``: on the command line or as a keyword of the call; nothing that was said once counts."""
    assert resolve({"insecure": True}).settings.insecure
    assert resolve({"set": ["insecure=true"]}).settings.insecure
    assert resolve(insecure=True).settings.insecure
    file = tmp_path / "run.toml"
    file.write_text("insecure = true\n")
    with pytest.raises(UsageError, match=r"run.toml: 'insecure' belongs on the command line: --insecure"):
        resolve({}, file)
    with pytest.raises(UsageError, match="env COFFEA_SCALEOUT_INSECURE: .*--insecure"):
        resolve(env={"COFFEA_SCALEOUT_INSECURE": "1"})
    with pytest.raises(UsageError, match="site: .*--insecure"):
        resolve({}, site={"insecure": True})
    text = show_config(resolve({"insecure": True}))
    assert re.search(r"^# insecure = true +# command line$", text, re.MULTILINE)
    file.write_text(text)
    assert not resolve({}, file).settings.insecure


def test_show_config_hides_secrets() -> None:
    jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlc2ln"
    text = show_config(
        resolve(
            {
                "wf_arg": ["api_token=canary1", f"note={jwt}", 'more={"password": ["canary3"], "x": 1}'],
                "json": "root://h//f?authz=canary2",
                "directive": ["--comment=MY_SECRET=canary4"],
                "worker_setup": ["export API_KEY=canary5", "x"],
            }
        )
    )
    assert "canary" not in text
    assert jwt not in text
    assert text.count(HIDDEN) == 6
    tomllib.loads(text)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        ("root://host//f.root?authz=Bearer%20abc.def-123&x=1", "abc.def-123"),
        ("eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl in a text", "eyJhbGciOi"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
        ("-----BEGIN CERTIFICATE-----\nMIIcut off", "MIIcut"),
        ("MY_TOKEN=hunter2 next", "hunter2"),
        ("{'DB_PASSWORD': 'hunter 2', 'x': 1}", "hunter 2"),
        ('"client_secret": "hunter2"', "hunter2"),
        ("https://user:hunter2@host/path", "hunter2"),
        ("https://s3/x?X-Amz-Signature=hunter2&a=1", "hunter2"),
    ],
)
def test_redact(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert redact(redact(text)) == redact(text)
    assert HIDDEN in redact(text)


def test_redact_leaves_the_rest_alone() -> None:
    for text in (
        "BEARER_TOKEN_FILE=/tmp/bt_u1000",
        "root://xrootd-cms.infn.it:1094//store/mc/x.root",
        "the key 'files' is missing",
        "ana.py:12 in process: x = events.Muon.pt",
        "a" * 100_000,
    ):
        assert redact(text) == text
    assert "x=1" in redact("root://h//f?authz=abcdef&x=1")
    assert all(map(secret_name, ("MY_TOKEN", "apiKey", "secrets")))
    assert not any(map(secret_name, ("TOKEN_FILE", "monkey", "year")))


def test_log_records_are_redacted(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    logger = logging.getLogger("executors.test")
    caplog.handler.addFilter(found := RedactingFilter())
    try:
        logger.error("opening %s", "root://h//f?authz=canary")
        try:
            raise ValueError("TOKEN=canary")
        except ValueError:
            logger.exception("it failed with %d arguments", 3)
        logger.error("%s %s", "MY_TOKEN=canary")  # noqa: PLE1206
    finally:
        caplog.handler.removeFilter(found)
    assert "canary" not in caplog.text
    assert "ValueError" in caplog.text


def test_convert_reads_text_and_checks_values() -> None:
    from typing import Literal, Optional

    S = Spelled
    assert convert(S("3"), int) == 3
    assert convert(S("3"), int | str) == 3
    assert convert(S("x"), int | str) == "x"
    assert convert(S("none"), Optional[int]) is None  # noqa: UP045
    assert convert(S("1.5"), int | float) == 1.5
    assert convert(S("b"), Literal["a", "b"]) == "b"
    assert convert(S("2"), Literal[1, 2]) == 2
    assert convert(S("1,2"), list[int]) == [1, 2]
    assert convert(S("[1, 2]"), tuple[int, ...]) == (1, 2)
    assert convert(S("1,x"), tuple[int, str]) == (1, "x")
    assert convert(S('{"a": 1}'), dict[str, int]) == {"a": 1}
    assert convert(S("~/x"), Path) == Path("~/x")
    assert convert(S("on"), bool) is True
    assert convert(2022, str) == "2022"
    assert convert(S("[1"), object) == "[1"
    for value, kind in (
        (True, int),
        ("3", int),
        (1, bool),
        ("a", Literal["b"]),
        (S("x"), list[int]),
        (True, Literal[1]),
    ):
        with pytest.raises(MismatchError):
            convert(value, kind)


def test_toml_writes_what_tomllib_reads() -> None:
    for value in (True, 3, 1.5, 'a"\\\n\x7f\u2028é😊', [1, "a"], {"a b": [1], "c": {"d": False}}, Path("x")):
        expected = str(value) if isinstance(value, Path) else value
        assert tomllib.loads(f"x = {toml(value)}")["x"] == expected


def test_the_example_file_is_valid() -> None:
    resolved = resolve({}, REPOSITORY / "configs" / "example.toml")
    assert resolved.settings.wf == "dimuon"


def test_a_document_without_its_secrets_is_still_one() -> None:
    """Text by text, before it is quoted: redacting JSON would take quotes along."""
    found = cleaned(
        {
            "api_token": "canary1",
            "arguments": {"password": ["canary2"], "pin_secret": 1234, "token_file": "/a", "use_token": True},
            "rows": ["MY_TOKEN=canary3", ("x", 1, None)],
            "the message": 'refused: Authorization: Bearer canary4567 and "MY_PASSWORD=canary5"',
            "MY_TOKEN=canary6": {"token": {"ok": None}},
        }
    )
    text = json.dumps(found)
    assert "canary" not in text
    assert json.loads(text)["arguments"] == {
        "password": HIDDEN, "pin_secret": HIDDEN, "token_file": "/a", "use_token": True
    }  # fmt: skip
    assert found["rows"][1] == ["x", 1, None]
    assert found["the message"].endswith(HIDDEN)


@pytest.mark.parametrize("value", ["canary", 'a "canary" b', 7, ["canary"], {"x": "canary"}])
def test_what_is_written_without_secrets_is_read_back(tmp_path: Path, value: object) -> None:
    outputs.write_json(tmp_path / "a.json", {"workflow_arguments": {"my_token": value}, "complete": True})
    assert outputs.read_json(tmp_path / "a.json")["complete"]
    assert "canary" not in (tmp_path / "a.json").read_text()
