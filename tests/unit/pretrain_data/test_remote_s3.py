from __future__ import annotations

import pytest

from data_tools.errors import DataError
from pretrain.data import open_stream
from tests.unit.pretrain_data.test_remote import MODES, assert_same, config, local, steps

boto3 = pytest.importorskip("boto3")
URL = "s3://text/some/corpus"


@pytest.fixture(scope="module")
def client(corpora):
    """Of a real server; fsspec keeps its connection, so one server is for all tests."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "a")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="text")
        for file in corpora["first"].rglob("*.*"):
            client.upload_file(str(file), "text", f"some/corpus/{file.relative_to(corpora['first'])}")
        yield client
    server.stop()


@pytest.mark.parametrize("mode", MODES)
def test_s3_gives_the_batches_of_local_files(kind, mode, client, corpora, tmp_path):
    expected = local(kind, tmp_path, corpora["first"])
    assert_same(steps(config(kind, tmp_path, URL, mode)), expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_missing_shard_is_named(mode, client, corpora, tmp_path):
    client.delete_object(Bucket="text", Key="some/corpus/train/train-00002.tar")
    with open_stream(config("gpt", tmp_path, URL, mode)) as stream:
        with pytest.raises(DataError, match=f"shard {URL}/train/train-00002.tar, block .*no such file"):
            for _ in range(100):
                next(stream)
    with pytest.raises(DataError, match="s3://text/elsewhere/train/manifest.json: no such file"):
        open_stream(config("gpt", tmp_path, "s3://text/elsewhere"))
    client.upload_file(
        str(corpora["first"] / "train" / "train-00002.tar"), "text", "some/corpus/train/train-00002.tar"
    )
