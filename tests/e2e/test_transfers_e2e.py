"""A large upload through a real gateway process: what arrives is what was sent, and memory does not grow with it."""

import hashlib
import threading

import psutil
import pytest
from gateways import Gateway
from hostile import in_a_thread
from shelf import shelf

MB = 1024 * 1024
POLICY = """policy = "cost"
[classes]
internal = ["unscannable"]
[[route]]
name = "all"
order_by = "listed"
"""


@pytest.fixture
def upstream():
    """A Shelf on a loop of its own, for a gateway in another process."""
    with in_a_thread(shelf()) as made:
        yield made


def config_of(upstream):
    return f"""
[upstreams.up]
kind = "openai"
base_url = "{upstream.base_url}"
takes_up_to = "internal"
[models.m]
candidates = [{{ upstream = "up", model = "theirs", capabilities = ["chat", "files", "batches", "audio/transcriptions", "audio/translations", "images/edits", "images/variations"] }}]
[cache]
semantic = false
"""


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_the_official_client_needs_no_change(tmp_path, upstream):
    """Sound, images, files and batches through a real process: the model's name is the upstream's, the rest as it was sent."""
    sound = ("a.mp3", bytes(range(256)) * 2000)
    with Gateway(tmp_path, config_of(upstream), policies={"all.toml": POLICY}) as gateway:
        gateway.until_up("up/theirs")
        client = gateway.client()
        heard = client.audio.transcriptions
        assert heard.create(model="m", file=sound).text == "said"
        assert heard.create(model="m", file=sound, response_format="text") == "said\n"
        events = [event.type for event in heard.create(model="m", file=sound, stream=True)]
        assert events == ["transcript.text.delta", "transcript.text.done"]
        assert client.audio.translations.create(model="m", file=sound).text == "said"
        assert client.images.edit(model="m", image=sound, prompt="a cat").data[0].b64_json == "AAAA"
        assert client.images.create_variation(model="m", image=sound).data[0].b64_json == "AAAA"
        assert all(b'"model"\r\n\r\ntheirs\r\n' in body and sound[1] in body for _, _, body in upstream.requests)
        line = b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"hi"}]}}\n'
        file = client.files.create(file=("b.jsonl", line), purpose="batch")
        assert line.replace(b'"m"', b'"theirs"') in upstream.requests[-1][2]
        assert client.files.retrieve(file.id).id == file.id
        assert client.files.content(file.id).content == b"\x00the content\xff"
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        assert client.batches.retrieve(batch.id).output_file_id == batch.output_file_id
        assert [one.id for one in client.batches.list()] == [batch.id]
        assert client.batches.cancel(batch.id).id == batch.id
        assert {one.id for one in client.files.list()} == {file.id, batch.output_file_id}
        assert client.files.delete(file.id).deleted
        assert {record["ending"] for record in gateway.records()} == {"complete"}


@pytest.mark.parametrize("order", ["streamed", "spooled"])
def test_memory_does_not_grow_with_an_upload(tmp_path, upstream, order):
    """100 MB cost the front worker less than 16 MB at any time, and arrive byte for byte but for the model's name."""
    purpose = b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    file = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    content = bytes(range(256)) * 4096

    def body():
        yield (purpose + file) if order == "streamed" else file
        for _ in range(100):
            yield content
        yield b"\r\n" + (b"" if order == "streamed" else purpose) + b"--xyz--\r\n"

    upstream.keeps = False
    with Gateway(tmp_path, config_of(upstream), policies={"all.toml": POLICY}) as gateway:
        gateway.until_up("up/theirs")
        front = psutil.Process(gateway.pid_of("gateway.app"))
        media = {"content-type": "multipart/form-data; boundary=xyz"}
        small = gateway.post("audio/transcriptions", content=purpose + file + b"x\r\n--xyz--\r\n", headers=media)
        assert small.status_code == 200, small.text
        before, most, over = front.memory_info().rss, [0], threading.Event()
        upstream.got, upstream.digest = 0, hashlib.sha256()

        def watch():
            while not over.wait(0.005):
                most[0] = max(most[0], front.memory_info().rss)

        watching = threading.Thread(target=watch)
        watching.start()
        answer = gateway.post("audio/transcriptions", content=body(), headers=media)
        over.set()
        watching.join()
        assert answer.status_code == 200, answer.text
        assert (
            upstream.digest.hexdigest()
            == hashlib.sha256(b"".join(body()).replace(b"\r\n\r\nm\r\n", b"\r\n\r\ntheirs\r\n")).hexdigest()
        )
        assert most[0] - before < 16 * MB, f"{(most[0] - before) / MB:.1f} MB"
        assert list((tmp_path / "state" / "spool").glob("*")) == []
        assert gateway.record(answer.headers["x-request-id"])["ending"] == "complete"
        print(f"{order}: {(most[0] - before) / MB:.1f} MB")
