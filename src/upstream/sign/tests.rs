//! Published examples of Signature Version 4, and what a signed request looks like.
//!
//! [`SUITE`] is AWS's signing test suite, `tests/aws-signing-test-suite/v4` of
//! <https://github.com/awslabs/aws-c-auth> (v0.9.0, Apache-2.0). Left out are the cases of rules that S3 does not
//! follow: normalised paths (`*-normalized`), paths encoded twice (`double-*`), and a session token that
//! is not signed (`post-sts-header-after`). [`S3`] has the examples of "Signature Calculations for the Authorization
//! Header: Transferring Payload in a Single Chunk" in the Amazon S3 API Reference.

use std::time::Duration;

use http::Method;
use http::uri::PathAndQuery;

use super::sigv4::EMPTY_SHA256;
use super::*;

/// Name, method and target, fields, hash of the content, signature. `x-amz-date` and `host` are added.
type Example = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
    &'static str,
);

#[test]
fn the_signatures_of_awss_test_suite_are_made() {
    let credentials = credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
    for example in SUITE {
        check(example, "example.amazonaws.com", "20150830T123600Z", "service", &credentials);
    }
}

#[test]
fn the_signatures_of_the_s3_reference_are_made() {
    let credentials =
        credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
    for example in S3 {
        check(example, "examplebucket.s3.amazonaws.com", "20130524T000000Z", "s3", &credentials);
    }
}

#[track_caller]
fn check(
    (name, line, fields, payload, signature): &Example,
    host: &'static str,
    time: &'static str,
    service: &str,
    credentials: &Credentials,
) {
    let (method, target) = line.split_once(' ').unwrap();
    let target = CanonicalTarget::new(&target.parse::<PathAndQuery>().unwrap()).unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in fields.iter().chain(&[("host", host), ("x-amz-date", time)]) {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let value = |name: &HeaderName| sigv4::field_value(headers.get_all(name));
    let mut fields: Vec<_> = headers.keys().map(|name| (name.as_str(), value(name))).collect();
    fields.sort_unstable();
    let (path, query) = (&target.path, &target.sorted_query());
    let signable = Signable { method, path, query, fields: &fields, payload };
    let signing = Signing { service: service.into(), ..signing("us-east-1") };
    let made = sigv4::authorization(&signable, &signing, credentials, time);
    let made = made.to_str().unwrap();
    assert_eq!(made.rsplit_once("Signature=").unwrap().1, *signature, "{name}: {made}");
}

#[test]
fn a_request_of_http2_is_signed_with_its_authority() {
    let of = |uri: &str, host: Option<&'static str>| {
        let mut request = Request::get(uri).body(Body::Empty).unwrap();
        if let Some(host) = host {
            request.headers_mut().insert("host", HeaderValue::from_static(host));
        }
        signed(request).headers()[AUTHORIZATION].clone()
    };
    let over_http1 = of("/a%20b?c", Some("bucket.example:8443"));
    assert_eq!(of("https://bucket.example:8443/a%20b?c", None), over_http1);
}

#[test]
fn the_clients_own_fields_of_amazon_are_not_signed_but_removed() {
    let mut request = Request::get("/a").header("host", "bucket.example");
    for name in ["authorization", "x-amz-acl", "x-amz-security-token", "x-amz-date"] {
        request = request.header(name, "client's");
    }
    let request = signed(request.body(Body::Empty).unwrap());
    let values: Vec<_> = request.headers().values().filter(|value| *value == "client's").collect();
    assert!(values.is_empty(), "{request:?}");
    assert!(!request.headers().contains_key("x-amz-acl"));
}

#[test]
fn other_methods_and_the_asterisk_form_are_not_signed() {
    for (method, uri) in [(Method::PUT, "/a"), (Method::GET, "*")] {
        let request = Request::builder().method(method).uri(uri).header("authorization", "x");
        let request = signed(request.body(Body::Empty).unwrap());
        assert_eq!(request.headers().len(), 1, "{request:?}");
    }
}

#[test]
fn a_target_whose_encoded_form_is_too_long_is_sent_as_it_came() {
    let target = format!("/{}", "(".repeat(40_000));
    let request = Request::get(&target).header("host", "bucket.example").body(Body::Empty).unwrap();
    let request = signed(request);
    assert_eq!(request.uri().path(), target);
    assert!(request.headers().contains_key(AUTHORIZATION));
}

#[test]
fn content_in_memory_is_hashed_and_content_that_streams_is_not() {
    let (_sender, stream) = crate::upstream::tests::channel();
    assert_eq!(payload(&Body::Empty), EMPTY_SHA256);
    assert_eq!(payload(&stream), "UNSIGNED-PAYLOAD");
    let hash = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
    assert_eq!(payload(&Body::from("Welcome to Amazon S3.".to_owned())), hash);
}

#[test]
fn a_check_with_content_is_signed_as_a_request_with_it() {
    let signing = Signing { methods: vec![Method::POST], ..signing("us-east-1") };
    let access = OriginAccess {
        signing: Some((signing, ArcSwap::from_pointee(credentials("AKID", "key")))),
        secret_field: None,
        files: Mutex::default(),
        renewal: Mutex::default(),
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
    let post = || Request::post("http://a.example/grpc.health.v1.Health/Check");
    let mut check = post().body(()).unwrap();
    access.authorize_check(&mut check, b"question", now);
    let mut request = post().body(Body::from("question".to_owned())).unwrap();
    access.authorize(&mut request, now);
    assert!(check.headers().contains_key(AUTHORIZATION));
    assert_eq!(check.headers(), request.headers());
}

#[test]
fn nothing_that_is_shown_of_a_signed_request_has_the_signature() {
    let request = Request::get("/a").header("host", "bucket.example").body(Body::Empty).unwrap();
    let shown = format!("{:?}", signed(request).headers());
    assert!(shown.contains("\"authorization\": Sensitive"), "{shown}");
    assert!(!shown.contains("AWS4-HMAC-SHA256"), "{shown}");
}

fn signed(mut request: Request<Body>) -> Request<Body> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
    sign(&mut request, payload, (&signing("us-east-1"), &credentials("AKID", "key")), now);
    request
}

fn credentials(key_id: &'static str, secret_key: &'static str) -> Credentials {
    Credentials::from_variables(|name| match name {
        "AWS_ACCESS_KEY_ID" => Some(key_id.to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some(secret_key.to_owned()),
        _ => None,
    })
    .unwrap()
}

fn signing(region: &str) -> Signing {
    Signing {
        region: region.into(),
        service: "s3".into(),
        credentials: CredentialsSource::Environment,
        methods: vec![Method::GET, Method::HEAD],
    }
}

const S3: &[Example] = &[
    (
        "get-object",
        "GET /test.txt",
        &[("range", "bytes=0-9"), ("x-amz-content-sha256", EMPTY_SHA256)],
        EMPTY_SHA256,
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    (
        "put-object",
        "PUT /test$file.text",
        &[
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            (
                "x-amz-content-sha256",
                "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            ),
        ],
        "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    (
        "get-bucket-lifecycle",
        "GET /?lifecycle",
        &[("x-amz-content-sha256", EMPTY_SHA256)],
        EMPTY_SHA256,
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    ),
    (
        "list-objects",
        "GET /?max-keys=2&prefix=J",
        &[("x-amz-content-sha256", EMPTY_SHA256)],
        EMPTY_SHA256,
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
];

const SUITE: &[Example] = &[
    (
        "get-header-key-duplicate",
        "GET /",
        &[("my-header1", "value2"), ("my-header1", "value2"), ("my-header1", "value1")],
        EMPTY_SHA256,
        "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
    ),
    (
        "get-header-value-multiline",
        "GET /",
        &[("my-header1", "value1   value2      value3")],
        EMPTY_SHA256,
        "cfd34249e4b1c8d6b91ef74165d41a32e5fab3306300901bb65a51a73575eefd",
    ),
    (
        "get-header-value-order",
        "GET /",
        &[
            ("my-header1", "value4"),
            ("my-header1", "value1"),
            ("my-header1", "value3"),
            ("my-header1", "value2"),
        ],
        EMPTY_SHA256,
        "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
    ),
    (
        "get-header-value-trim",
        "GET /",
        &[("my-header1", " value1"), ("my-header2", " \"a   b   c\"")],
        EMPTY_SHA256,
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
    (
        "get-relative-relative-unnormalized",
        "GET /example1/example2/../..",
        &[],
        EMPTY_SHA256,
        "dc33e0856fd4baca4d7aa2146c38958283844764f38c74252a333df5e613003b",
    ),
    (
        "get-relative-unnormalized",
        "GET /example/..",
        &[],
        EMPTY_SHA256,
        "eca7ead57bb5aa5c8e28007acd4ff04e1ff9a0ff3b237ec1554a184887ff9282",
    ),
    (
        "get-slash-dot-slash-unnormalized",
        "GET /./",
        &[],
        EMPTY_SHA256,
        "68714168e6557f8f2de0ef956fc24dc2593a4bd2961f8df51898d8a134695145",
    ),
    (
        "get-slash-pointless-dot-unnormalized",
        "GET /./example",
        &[],
        EMPTY_SHA256,
        "beb03f223f7deae4146464f06e29eebbee9c8afbe15c290cf07aa8b119e14cff",
    ),
    (
        "get-slash-unnormalized",
        "GET //",
        &[],
        EMPTY_SHA256,
        "c88bcd3d312d75078c0cd961d6deae3f4c754924b01669efcfcb439fd5e5b76e",
    ),
    (
        "get-slashes-unnormalized",
        "GET //example//",
        &[],
        EMPTY_SHA256,
        "87cca117541a147f6df867677d98a7d80dff226d2bfca9e4ffa899665623c7e5",
    ),
    (
        "get-space-normalized",
        "GET /example%20space/",
        &[],
        EMPTY_SHA256,
        "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741",
    ),
    (
        "get-space-unnormalized",
        "GET /example%20space/",
        &[],
        EMPTY_SHA256,
        "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741",
    ),
    (
        "get-unreserved",
        "GET /-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
        &[],
        EMPTY_SHA256,
        "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
    ),
    (
        "get-utf8",
        "GET /%E1%88%B4",
        &[],
        EMPTY_SHA256,
        "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
    ),
    (
        "get-vanilla",
        "GET /",
        &[],
        EMPTY_SHA256,
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ),
    (
        "get-vanilla-empty-query-key",
        "GET /?Param1=value1",
        &[],
        EMPTY_SHA256,
        "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
    ),
    (
        "get-vanilla-query",
        "GET /",
        &[],
        EMPTY_SHA256,
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ),
    (
        "get-vanilla-query-order-encoded",
        "GET /?Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
        &[],
        EMPTY_SHA256,
        "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
    ),
    (
        "get-vanilla-query-order-key-case",
        "GET /?Param2=value2&Param1=value1",
        &[],
        EMPTY_SHA256,
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    (
        "get-vanilla-query-unreserved",
        "GET /?-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz=-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
        &[],
        EMPTY_SHA256,
        "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
    ),
    (
        "get-vanilla-utf8-query",
        "GET /?%E1%88%B4=bar",
        &[],
        EMPTY_SHA256,
        "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04",
    ),
    (
        "get-vanilla-with-session-token",
        "GET /",
        &[(
            "x-amz-security-token",
            "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267",
        )],
        EMPTY_SHA256,
        "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8",
    ),
    (
        "post-header-key-case",
        "POST /",
        &[],
        EMPTY_SHA256,
        "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    ),
    (
        "post-header-key-sort",
        "POST /",
        &[("my-header1", "value1")],
        EMPTY_SHA256,
        "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
    ),
    (
        "post-header-value-case",
        "POST /",
        &[("my-header1", "VALUE1")],
        EMPTY_SHA256,
        "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
    ),
    (
        "post-sts-header-before",
        "POST /",
        &[(
            "x-amz-security-token",
            "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==",
        )],
        EMPTY_SHA256,
        "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
    ),
    (
        "post-vanilla",
        "POST /",
        &[],
        EMPTY_SHA256,
        "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    ),
    (
        "post-vanilla-empty-query-value",
        "POST /?Param1=value1",
        &[],
        EMPTY_SHA256,
        "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
    ),
    (
        "post-vanilla-query",
        "POST /?Param1=value1",
        &[],
        EMPTY_SHA256,
        "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11",
    ),
    (
        "post-x-www-form-urlencoded",
        "POST /",
        &[
            ("content-type", "application/x-www-form-urlencoded"),
            ("content-length", "13"),
            (
                "x-amz-content-sha256",
                "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
            ),
        ],
        "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
        "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
    ),
    (
        "post-x-www-form-urlencoded-parameters",
        "POST /",
        &[
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("content-length", "13"),
            (
                "x-amz-content-sha256",
                "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
            ),
        ],
        "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
        "328d1b9eaadca9f5818ef05e8392801e091653bafec24fcab71e7344e7f51422",
    ),
];
