"""S3 on loopback: moto's server, with buckets, and the environment by which AWS clients reach it.

with serving("bucket") as environment: os.environ |= environment
"""

import contextlib
from collections.abc import Iterator

import boto3
from moto.server import ThreadedMotoServer


@contextlib.contextmanager
def serving(*buckets: str) -> Iterator[dict[str, str]]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    login = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "not-a-real-secret"}
    where = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
    client = boto3.client("s3", **where, **{name.lower(): value for name, value in login.items()})
    for bucket in buckets:
        client.create_bucket(Bucket=bucket)
    try:
        yield login | {"AWS_ENDPOINT_URL": where["endpoint_url"], "AWS_EC2_METADATA_DISABLED": "true"}
    finally:
        server.stop()
