#!/bin/sh
# obstore: one key with an empty part ends the listing of a bucket, and a folder marker is given as the object of its name.
#
# Versions: obstore 0.12.1, moto 5.2.5, CPython 3.11.
# What one would guess: a listing gives the keys that the bucket has; one that the library cannot name is left out or escaped.
# What happens: `a//b`, a part that is `..`, or a control character raises InvalidPathError from `list`, and nothing of that page is given.
# The marker `m/` is given as `m`, which may be another object or none. A listing with a delimiter does not meet keys further below, but
# fails likewise at `//b` right below its prefix.
# What datatask does: it has obstore sign the request for each page, makes it itself and reads the keys as they are
# (adapters/store/s3_requests.py). tests/contract/test_remote_store.py holds that on two servers.
# Output seen:
#   marker: ['m', 'z']
#   odd key: InvalidPathError
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1 'moto[server,s3]==5.2.5'
cat >"$folder/odd.py" <<'PYTHON'
import logging

import boto3
import obstore
from moto.server import ThreadedMotoServer
from obstore.exceptions import InvalidPathError
from obstore.store import S3Store

logging.disable(logging.CRITICAL)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
options = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **options)
client.create_bucket(Bucket="bucket")
store = S3Store(
    "bucket",
    endpoint=f"http://{host}:{port}",
    access_key_id="k",
    secret_access_key="s",
    region="us-east-1",
    client_options={"allow_http": True},
)
for key in ("p/z", "p/m/"):
    client.put_object(Bucket="bucket", Key=key, Body=b"x")
print("marker:", sorted(one["path"].removeprefix("p/") for page in obstore.list(store, "p") for one in page))
client.put_object(Bucket="bucket", Key="p/a//b", Body=b"x")
try:
    print("odd key:", [one["path"] for page in obstore.list(store, "p") for one in page])
except InvalidPathError as error:
    print("odd key:", type(error).__name__)
server.stop()
PYTHON
"$folder/venv/bin/python" "$folder/odd.py"
