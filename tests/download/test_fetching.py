"""Downloads over the network: resumed, checked and bounded; the Hub's real client against a stand-in server."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.download import url
from pipeline.download.sources import download
from pipeline.errors import UserError
from tests.documents.formats import STORIES, as_jsonl, as_parquet
from tests.download.serving import COMMIT, REPO, serving
from tests.download.test_sources import ROOT, preset, texts


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url, "PAUSES", (0.01, 0.01, 0.01))


def fetch(url: str, into: Path, **changes: Any) -> list[str]:
    download(preset("url", urls=[url], **changes), into)
    return texts(into)


@pytest.mark.usefixtures("quick")
def test_a_broken_download_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    data = as_jsonl(STORIES * 40)
    digest = hashlib.sha256(data).hexdigest()
    with serving({"stories.jsonl": data}) as site:
        site.failures, site.cuts = 1, [30_000, 50_000]
        assert fetch(f"{site.url}/stories.jsonl", tmp_path / "raw", sha256=[digest]) == STORIES * 40
        assert [wanted for _, _, wanted in site.asked] == [None, None, "bytes=30000-", "bytes=80000-"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


@pytest.mark.usefixtures("quick")
def test_without_an_etag_a_download_begins_anew(tmp_path: Path) -> None:
    data = as_jsonl(STORIES * 40)
    with serving({"stories.jsonl": data}) as site:
        site.cuts, site.etags = [30_000], False
        assert fetch(f"{site.url}/stories.jsonl", tmp_path / "raw") == STORIES * 40
        assert [wanted for _, _, wanted in site.asked] == [None, None]


@pytest.mark.usefixtures("quick")
def test_a_half_download_is_kept_for_the_next_run_and_not_taken_for_whole(tmp_path: Path) -> None:
    data = as_jsonl(STORIES * 40)
    with serving({"stories.jsonl": data}) as site:
        site.cuts = [10_000] * 4
        with pytest.raises(UserError, match=r"gave up after 4 tries, 40\.0 kB are kept"):
            fetch(f"{site.url}/stories.jsonl", tmp_path / "raw")
        assert not (tmp_path / "raw").exists()
        assert fetch(f"{site.url}/stories.jsonl", tmp_path / "raw") == STORIES * 40
        assert site.asked[-1][2] == "bytes=40000-"


@pytest.mark.usefixtures("quick")
def test_what_an_address_gives_is_checked(tmp_path: Path) -> None:
    with serving({"a.jsonl": as_jsonl(STORIES), "b.exe": b"MZ"}) as site:
        with pytest.raises(UserError, match=r"its sha256 is .*, not 0000"):
            fetch(f"{site.url}/a.jsonl", tmp_path / "raw", sha256=["0" * 64])
        with pytest.raises(UserError, match=r"max_download_bytes allows 100 B"):
            fetch(f"{site.url}/a.jsonl", tmp_path / "raw", max_download_bytes=100)
        with pytest.raises(UserError, match="the server answered 404"):
            fetch(f"{site.url}/absent.jsonl", tmp_path / "raw")
        with pytest.raises(UserError, match="unknown type of file"):
            fetch(f"{site.url}/b.exe", tmp_path / "raw")
    with pytest.raises(UserError, match="no connection"):
        fetch(f"{site.url}/a.jsonl", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.usefixtures("quick")
def test_an_address_that_is_none_or_leads_in_circles(tmp_path: Path) -> None:
    for address, message in {
        "example.org/a.jsonl": "allowed: addresses that begin with http:// or https://",
        "ftp://example.org/a.jsonl": "allowed: addresses that begin with http:// or https://",
        "http://[::1/a.jsonl": "is no address",
    }.items():
        with pytest.raises((UserError, ValueError), match=message):
            fetch(address, tmp_path / "raw")
    with pytest.raises(ValueError, match=r"'http://x/a\.txt' is given twice"):
        preset("url", urls=["http://x/a.txt", "http://x/a.txt"])
    with serving({}) as site:
        site.redirects = {"a.jsonl": "/b.jsonl", "b.jsonl": "/a.jsonl"}
        with pytest.raises(UserError, match="from one address to the next without end"):
            fetch(f"{site.url}/a.jsonl", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.usefixtures("quick")
def test_a_file_without_a_length_is_taken_with_a_warning_unless_its_sha256_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = as_jsonl(STORIES)
    with serving({"a.jsonl": data}) as site:
        site.lengths = False
        assert fetch(f"{site.url}/a.jsonl", tmp_path / "raw") == STORIES
        assert "a file cut short would look whole; give its sha256" in capsys.readouterr().err
        digest = hashlib.sha256(data).hexdigest()
        assert fetch(f"{site.url}/a.jsonl", tmp_path / "raw", sha256=[digest]) == STORIES
        assert "cut short" not in capsys.readouterr().err
        site.cuts = [1000]
        with pytest.raises(UserError, match="its sha256 is"):
            fetch(f"{site.url}/a.jsonl", tmp_path / "raw", sha256=[digest])


@pytest.mark.usefixtures("quick")
def test_a_whole_file_that_could_not_be_read_is_kept_only_while_the_server_has_the_same(tmp_path: Path) -> None:
    with serving({"a.jsonl": as_jsonl(STORIES, "body")}) as site:
        for _ in range(2):
            with pytest.raises(UserError, match="no field 'text'; there is body"):
                fetch(f"{site.url}/a.jsonl", tmp_path / "raw")
        assert fetch(f"{site.url}/a.jsonl", tmp_path / "raw", text_column="body") == STORIES
        with pytest.raises(UserError, match="no field 'text'"):
            fetch(f"{site.url}/a.jsonl", tmp_path / "raw")
        site.files["a.jsonl"] = as_jsonl(STORIES[:9])  # the publisher repairs it
        assert fetch(f"{site.url}/a.jsonl", tmp_path / "raw") == STORIES[:9]


def test_two_downloads_at_once_do_not_mix(tmp_path: Path) -> None:
    data = as_jsonl(STORIES * 400)
    with serving({"a.jsonl": data}) as site, ThreadPoolExecutor() as pool:
        runs = [pool.submit(fetch, f"{site.url}/a.jsonl", tmp_path / "raw") for _ in range(4)]
        errors = [str(run.exception()) for run in runs if run.exception()]
    assert len(errors) < 4 and all("another process is writing" in error for error in errors), errors
    assert texts(tmp_path / "raw") == STORIES * 400 and not (tmp_path / ".downloads").exists()


def test_the_manifest_names_the_version(tmp_path: Path) -> None:
    data = as_jsonl(STORIES)
    with serving({"a.jsonl": data}) as site:
        fetch(f"{site.url}/a.jsonl?part=7", tmp_path / "raw")
    manifest = json.loads((tmp_path / "raw/manifest.json").read_text())
    assert manifest["origin"] == f"{site.url}/a.jsonl?part=7"
    assert manifest["files"][0]["revision"] == hashlib.sha256(data).hexdigest()  # the server's ETag


def test_a_login_comes_from_netrc_and_a_token_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login anna password s3cr3t\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))
    with serving({"a.jsonl": as_jsonl(STORIES)}) as site, serving({"a.jsonl": as_jsonl(STORIES)}) as elsewhere:
        site.authorization = "Basic " + base64.b64encode(b"anna:s3cr3t").decode()
        with pytest.raises(UserError, match=r"answered 401 .*a login belongs in ~/\.netrc.*MOE_TOKEN_127_0_0_1"):
            fetch(f"{site.url}/a.jsonl", tmp_path / "raw")
        monkeypatch.setenv("NETRC", str(netrc))
        assert fetch(f"{site.url}/a.jsonl", tmp_path / "raw") == STORIES
        monkeypatch.setenv("MOE_TOKEN_127_0_0_1", "t0k3n")
        site.authorization, site.redirects = "Bearer t0k3n", {"b.jsonl": f"{elsewhere.url}/a.jsonl"}
        assert fetch(f"{site.url}/a.jsonl", tmp_path / "raw") == STORIES
        assert fetch(f"{site.url}/b.jsonl", tmp_path / "raw") == STORIES
        assert elsewhere.authorizations == {None}, "a login goes to its own host alone"
        netrc.write_text("machine\n")
        monkeypatch.delenv("MOE_TOKEN_127_0_0_1")
        with pytest.raises(UserError, match=r"netrc: .* \(line \d\)"):
            fetch(f"{site.url}/a.jsonl", tmp_path / "raw")
    kept = "".join(file.read_text("latin-1") for file in (tmp_path / "raw").iterdir()) + "".join(capsys.readouterr())
    assert "s3cr3t" not in kept and "t0k3n" not in kept


@pytest.mark.usefixtures("quick")
def test_the_bounds_hold_for_addresses(tmp_path: Path) -> None:
    with serving({"a.jsonl": as_jsonl(STORIES[:20]), "b.jsonl": as_jsonl(STORIES[20:])}) as site:
        addresses = [f"{site.url}/a.jsonl", f"{site.url}/b.jsonl"]
        report = download(preset("url", urls=addresses, max_documents=23), tmp_path / "raw")
        assert texts(tmp_path / "raw") == STORIES[:23] and report["sources"] == {"a": 20, "b": 3}
        size = sum(len(text.encode()) for text in STORIES[:5])
        assert fetch(addresses[0], tmp_path / "raw", max_bytes=size) == STORIES[:5]
        drawn = fetch(addresses[0], tmp_path / "raw", sample_fraction=0.5)
        assert 2 <= len(drawn) <= 18 and drawn == [text for text in STORIES[:20] if text in drawn]


HUB = """
import json, sys
from pathlib import Path
from pipeline import params
from pipeline.download import url
from pipeline.download.sources import download
from pipeline.errors import UserError
url.PAUSES = (0.01, 0.01)
for number, changes in enumerate(json.loads(sys.argv[1])):
    try:
        print(json.dumps(download(params.HuggingFace(**changes), Path(f"raw-{number}"))))
    except UserError as error:
        print(json.dumps({"error": str(error)}))
"""


def hub(folder: Path, endpoint: str, *changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Download from a Hub in a process of its own: its client reads the address when it is imported."""
    preset = yaml.safe_load((ROOT / "configs/download/huggingface.yaml").read_text(encoding="utf-8"))
    wanted = [{**preset, "watch": "-", "repo": REPO, "splits": {"train": "data/train-*.parquet"}, **c} for c in changes]
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", HUB, json.dumps(wanted)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_of_the_hub_whole_and_sampled(tmp_path: Path) -> None:
    files = {
        "data/train-00000.parquet": as_parquet(STORIES[:20]),
        "data/train-00001.parquet": as_parquet(STORIES[20:40]),
        "data/validation-00000.parquet": as_parquet(STORIES[40:]),
        "README.md": b"about",
    }
    splits = {"train": "data/train-*.parquet", "val": "data/validation-*.parquet"}
    with serving(files) as site:
        site.failures = 1
        whole, sampled, no_revision, no_repo, no_file = hub(
            tmp_path,
            site.url,
            {"splits": splits, "licence": "MIT"},
            {"splits": splits, "max_documents": 30},
            {"revision": "absent"},
            {"repo": "team/absent"},
            {"splits": {"train": "other/*"}},
        )
    assert texts(tmp_path / "raw-0") == STORIES[40:] + STORIES[:40]
    assert (whole["revision"], whole["licence"], whole["splits"]) == (COMMIT, "MIT", {"val": 10, "train": 40})
    manifest = json.loads((tmp_path / "raw-0/manifest.json").read_text())
    assert manifest["files"][0]["sha256"] == hashlib.sha256(files["data/validation-00000.parquet"]).hexdigest()
    assert manifest["files"][0]["origin"] == f"hf://datasets/{REPO}@{COMMIT}/data/validation-00000.parquet"
    assert sampled["splits"] == {"val": 3, "train": 27}
    assert texts(tmp_path / "raw-1") == STORIES[40:43] + STORIES[:27]
    assert "download.revision = 'absent'" in no_revision["error"]
    assert (
        "download.repo = 'team/absent' at download.revision = 'main': the Hub has no such repository"
        in no_repo["error"]
    )
    assert "matches 'other/*'; it holds README.md, data/train-00000.parquet" in no_file["error"]


def test_the_card_of_a_data_set_says_which_files_and_which_licence(tmp_path: Path) -> None:
    files = {
        "data/part-1.jsonl": as_jsonl(STORIES[:5]),
        "data/part-2.jsonl": as_jsonl(STORIES[5:9]),
        "zh/part-1.jsonl": as_jsonl(STORIES[9:12]),
        "en/train/a.jsonl": as_jsonl(STORIES[12:15]),
    }
    with serving(files) as site:
        site.plain = {"data/part-1.jsonl"}
        site.card = {
            "license": "cc-by-4.0",
            "configs": [
                {"config_name": "stories", "data_files": [{"split": "train", "path": "data/part-1*"},
                                                          {"split": "validation", "path": ["data/part-2.*"]}]},
                {"config_name": "chinese", "data_files": "zh/*"},
                {"config_name": "english", "data_dir": "en"},
            ],
        }  # fmt: skip
        found = hub(
            tmp_path,
            site.url,
            {"config": "stories", "splits": {"train": "train", "val": "val*"}},
            {"config": "chinese", "splits": {"train": "*train*"}, "licence": "MIT"},
            {"config": "english", "splits": {"train": "*train*"}},
            {"config": "french", "splits": {"train": "*train*"}},
            {"repo": "no/such/name"},
        )
    stories, chinese, english, french, name = found
    assert texts(tmp_path / "raw-0") == STORIES[5:9] + STORIES[:5]
    assert (stories["licence"], chinese["licence"]) == ("cc-by-4.0", "MIT")
    assert texts(tmp_path / "raw-1") == STORIES[9:12] and texts(tmp_path / "raw-2") == STORIES[12:15]
    assert english["documents"] == 3
    assert "of config 'french'" in french["error"] and "declares the configurations stories, chinese" in french["error"]
    assert "'no/such/name' at download.revision = 'main': this is no name of a repository" in name["error"]
    entries = {e["name"]: e for e in json.loads((tmp_path / "raw-0/manifest.json").read_text())["files"]}
    assert entries["data/part-1.jsonl"]["sha256"] == hashlib.sha256(files["data/part-1.jsonl"]).hexdigest()


def test_a_stream_of_the_hub_that_breaks_off_is_asked_for_again(tmp_path: Path) -> None:
    lines = as_jsonl(STORIES * 40)
    with serving({"data/train-0.parquet": as_parquet(STORIES), "data/lines.jsonl": lines}) as site:
        site.cuts = [500, 500]
        (drawn,) = hub(tmp_path, site.url, {"sample_fraction": 0.5, "splits": {"train": "data/lines*"}})
        assert 600 < drawn["documents"] < 1400
        assert not any(tmp_path.glob("cache/**/*.jsonl")), "a sampled data set is streamed, not fetched whole"
        site.cuts = [500] * 9
        (broken,) = hub(tmp_path, site.url, {"max_documents": 5})
        assert "cannot be reached" in broken["error"]
    assert not (tmp_path / "raw-0/..partial").exists()


def test_without_a_network_the_hub_source_says_so(tmp_path: Path) -> None:
    with serving({}) as site:
        closed = site.url
    (answer,) = hub(tmp_path, closed, {})
    assert "cannot be reached" in answer["error"] and "download=local" in answer["error"]
    assert not (tmp_path / "raw-0").exists()
