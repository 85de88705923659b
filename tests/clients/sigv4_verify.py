"""Signs requests with botocore as the edge did, and compares the signatures.

Standard input: a JSON list of requests as the origin received them, each with the target that the client sent.
Arguments: region, key id, secret key. The last output is "ok" and the number of requests.
"""

import json
import sys
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

REGION, KEY_ID, SECRET_KEY = sys.argv[1:]
MUST_BE_SIGNED = {"host", "range", "if-range", "if-match", "if-none-match"}
MUST_BE_SIGNED |= {"if-modified-since", "if-unmodified-since", "content-type"}


def verify(received):
    fields = {name.lower(): value for name, value in received["fields"]}
    authorization = fields["authorization"]
    signed = authorization.split("SignedHeaders=")[1].split(",")[0].split(";")
    for name in fields:
        if name in MUST_BE_SIGNED or name.startswith("x-amz-"):
            assert name in signed, f"{name} is not signed"

    path, _, query = received["target"].partition("?")
    sent_path, _, sent_query = received["sent"].partition("?")
    assert unquote_to_bytes(path) == unquote_to_bytes(sent_path), "another path"
    assert quote(unquote_to_bytes(path), safe="/-._~") == path, "the path is not canonical"
    parameters = [parse_qsl(one, keep_blank_values=True) for one in (query, sent_query)]
    assert parameters[0] == parameters[1], "another query"

    request = AWSRequest(
        method=received["method"],
        url="https://" + fields["host"] + received["target"],
        headers={name: fields[name] for name in signed},
    )
    request.context["timestamp"] = fields["x-amz-date"]
    request.context["payload_signing_enabled"] = True
    auth = S3SigV4Auth(Credentials(KEY_ID, SECRET_KEY), "s3", REGION)
    to_sign = auth.string_to_sign(request, auth.canonical_request(request))
    expected = auth.signature(to_sign, request)
    assert authorization.endswith("Signature=" + expected), (authorization, expected)
    scope = auth.scope(request)
    assert f" Credential={scope}, " in authorization, (authorization, scope)


requests = json.load(sys.stdin)
for number, received in enumerate(requests):
    try:
        verify(received)
    except Exception as error:
        sys.exit(f"request {number}: {error!r}\n{json.dumps(received, indent=1)}")
print("ok", len(requests))
