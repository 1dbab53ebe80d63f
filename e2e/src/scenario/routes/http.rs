//! The features of HTTPRoute, one case each.

use serde_json::{Value, json};

use super::case::{Ask, Case, mark};

/// Paths that tell that everything is live: of the first case and of the last.
pub(super) const FIRST_PATH: &str = "/exact";
pub(super) const LAST_PATH: &str = "/last";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = matches();
    cases.extend(filters());
    cases.extend(times());
    cases.push(Case {
        id: "z1",
        name: "a rule without a feature",
        rules: json!([rule(&json!([prefix(LAST_PATH)]), &[mark("last")])]),
        asks: vec![Ask::get(LAST_PATH, 200).rule("last")],
    });
    cases
}

fn rule(matches: &Value, filters: &[Value]) -> Value {
    json!({"matches": matches, "filters": filters, "backendRefs": [{"name": "echo"}]})
}

fn prefix(path: &str) -> Value {
    json!({"path": {"type": "PathPrefix", "value": path}})
}

fn matches() -> Vec<Case> {
    vec![
        Case {
            id: "m1",
            name: "path Exact",
            rules: json!([rule(
                &json!([{"path": {"type": "Exact", "value": FIRST_PATH}}]),
                &[mark("exact")]
            )]),
            asks: vec![
                Ask::get("/exact?x=1", 200).rule("exact").echo("/path", "/exact?x=1"),
                Ask::get("/exact/", 404),
                Ask::get("/exactly", 404),
            ],
        },
        Case {
            id: "m2",
            name: "path PathPrefix, the longest first",
            rules: json!([
                rule(&json!([prefix("/prefix")]), &[mark("short")]),
                rule(&json!([prefix("/prefix/long")]), &[mark("long")]),
            ]),
            asks: vec![
                Ask::get("/prefix/other", 200).rule("short"),
                Ask::get("/prefix/long/x", 200).rule("long"),
                Ask::get("/prefixed", 404),
            ],
        },
        Case {
            id: "m3",
            name: "path RegularExpression",
            rules: json!([rule(
                &json!([{"path": {"type": "RegularExpression", "value": "/regex/[0-9]+"}}]),
                &[mark("regex")]
            )]),
            asks: vec![Ask::get("/regex/12", 200).rule("regex"), Ask::get("/regex/ab", 404)],
        },
        Case {
            id: "m4",
            name: "headers Exact and RegularExpression, the more of them first",
            rules: json!([
                rule(&json!([prefix("/header")]), &[mark("none")]),
                rule(
                    &with(
                        &prefix("/header"),
                        "headers",
                        &json!([{"name": "x-team", "value": "blue"}])
                    ),
                    &[mark("blue")]
                ),
                rule(
                    &with(
                        &prefix("/header"),
                        "headers",
                        &json!([{"name": "x-team", "value": "blue"},
                    {"name": "x-level", "type": "RegularExpression", "value": "[1-3]"}])
                    ),
                    &[mark("low blue")]
                ),
            ]),
            asks: vec![
                Ask::get("/header", 200).rule("none"),
                Ask::get("/header", 200).with("x-team", "blue").rule("blue"),
                Ask::get("/header", 200)
                    .with("x-team", "blue")
                    .with("x-level", "2")
                    .rule("low blue"),
                Ask::get("/header", 200).with("x-team", "blue").with("x-level", "7").rule("blue"),
            ],
        },
        Case {
            id: "m5",
            name: "method",
            rules: json!([
                rule(&with(&prefix("/method"), "method", &json!("POST")), &[mark("post")]),
                rule(&with(&prefix("/method"), "method", &json!("GET")), &[mark("get")]),
            ]),
            asks: vec![
                Ask::get("/method", 200).rule("get"),
                Ask::new("POST", "/method", 200).rule("post").echo("/method", "POST"),
                Ask::new("DELETE", "/method", 404),
            ],
        },
        Case {
            id: "m6",
            name: "query parameters Exact and RegularExpression",
            rules: json!([
                rule(
                    &with(
                        &prefix("/query"),
                        "queryParams",
                        &json!([{"name": "kind", "value": "a"}])
                    ),
                    &[mark("a")]
                ),
                rule(
                    &with(
                        &prefix("/query"),
                        "queryParams",
                        &json!([{"name": "kind", "type": "RegularExpression",
                    "value": "b[0-9]"}])
                    ),
                    &[mark("b")]
                ),
            ]),
            asks: vec![
                Ask::get("/query?kind=a&x=1", 200).rule("a").echo("/path", "/query?kind=a&x=1"),
                Ask::get("/query?kind=b7", 200).rule("b"),
                Ask::get("/query?kind=c", 404),
            ],
        },
    ]
}

fn with(one: &Value, field: &str, value: &Value) -> Value {
    let mut one = one.clone();
    one[field] = value.clone();
    json!([one])
}

fn redirect(path: &str, what: &Value) -> Value {
    let filter = json!({"type": "RequestRedirect", "requestRedirect": what});
    json!({"matches": [prefix(path)], "filters": [filter]})
}

fn rewrite(path: &str, what: &Value) -> Value {
    let filter = json!({"type": "URLRewrite", "urlRewrite": what});
    rule(&json!([prefix(path)]), &[filter])
}

fn filters() -> Vec<Case> {
    vec![
        Case {
            id: "f1",
            name: "request headers set, added, removed; also of one backend",
            rules: json!([{
                "matches": [prefix("/request-headers")],
                "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {
                    "set": [{"name": "x-set", "value": "ours"}],
                    "add": [{"name": "x-add", "value": "more"}],
                    "remove": ["x-remove"],
                }}],
                "backendRefs": [{"name": "echo", "filters": [{"type": "RequestHeaderModifier",
                    "requestHeaderModifier": {"set": [{"name": "x-backend", "value": "echo"}]}}]}],
            }]),
            asks: vec![
                Ask::get("/request-headers", 200)
                    .with("x-set", "theirs")
                    .with("x-add", "one")
                    .with("x-remove", "me")
                    .echo("/headers/x-set", json!(["ours"]))
                    .echo("/headers/x-remove", Value::Null)
                    .echo("/headers/x-backend", json!(["echo"]))
                    // The header of the door must never reach a service.
                    .echo("/headers/fairlead-backend", Value::Null),
            ],
        },
        Case {
            id: "f2",
            name: "response headers set, added, removed",
            rules: json!([rule(
                &json!([prefix("/response-headers")]),
                &[json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": {
                    "set": [{"name": "x-set", "value": "ours"}],
                    "add": [{"name": "x-add", "value": "more"}],
                    "remove": ["content-type"],
                }})]
            )]),
            asks: vec![
                Ask::get("/response-headers", 200)
                    .header("x-set", "ours")
                    .header("x-add", "more")
                    .header("content-type", ""),
            ],
        },
        Case {
            id: "f3",
            name: "redirect of scheme, host, path and port",
            rules: json!([
                redirect("/redirect/scheme", &json!({"scheme": "https", "statusCode": 301})),
                redirect("/redirect/host", &json!({"hostname": "other.test", "statusCode": 302})),
                redirect(
                    "/redirect/path",
                    &json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}})
                ),
                redirect(
                    "/redirect/full",
                    &json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/all"}})
                ),
                redirect("/redirect/port", &json!({"port": 8443})),
            ]),
            asks: vec![
                Ask::get("/redirect/scheme/a", 301)
                    .header("location", "https://http.DOMAIN/redirect/scheme/a"),
                Ask::get("/redirect/host/a?x=1", 302)
                    .header("location", "http://other.test/redirect/host/a?x=1"),
                Ask::get("/redirect/path/a", 302).header("location", "http://http.DOMAIN/new/a"),
                Ask::get("/redirect/full/a", 302).header("location", "http://http.DOMAIN/all"),
                Ask::get("/redirect/port/a", 302)
                    .header("location", "http://http.DOMAIN:8443/redirect/port/a"),
            ],
        },
        Case {
            id: "f4",
            name: "rewrite of host, prefix and whole path, once",
            rules: json!([
                rewrite("/rewrite/host", &json!({"hostname": "inside.test"})),
                rewrite(
                    "/rewrite/prefix",
                    &json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}})
                ),
                rewrite(
                    "/rewrite/full",
                    &json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/all"}})
                ),
            ]),
            asks: vec![
                Ask::get("/rewrite/host", 200).echo("/host", "inside.test"),
                Ask::get("/rewrite/prefix/rewrite/prefix?x=1", 200)
                    .echo("/path", "/new/rewrite/prefix?x=1"),
                Ask::get("/rewrite/full/a?x=1", 200).echo("/path", "/all?x=1"),
            ],
        },
        Case {
            id: "f5",
            name: "CORS",
            rules: json!([rule(
                &json!([prefix("/cors")]),
                &[json!({"type": "CORS", "cors": {
                    "allowOrigins": ["https://app.test"],
                    "allowMethods": ["GET", "PUT"],
                    "allowHeaders": ["x-one"],
                    "exposeHeaders": ["x-two"],
                    "allowCredentials": true,
                    "maxAge": 60,
                }})]
            )]),
            asks: vec![
                Ask::new("OPTIONS", "/cors", 200)
                    .with("origin", "https://app.test")
                    .with("access-control-request-method", "PUT")
                    .header("access-control-allow-origin", "https://app.test")
                    .header("access-control-max-age", "60"),
                Ask::get("/cors", 200)
                    .with("origin", "https://app.test")
                    .header("access-control-allow-origin", "https://app.test")
                    .header("access-control-expose-headers", "x-two"),
                Ask::get("/cors", 200)
                    .with("origin", "https://evil.test")
                    .header("access-control-allow-origin", ""),
            ],
        },
    ]
}

fn times() -> Vec<Case> {
    let timed = |path: &str, more: &[(&str, Value)]| {
        let mut rule = rule(&json!([prefix(path)]), &[]);
        for (field, value) in more {
            rule[*field] = value.clone();
        }
        rule
    };
    vec![
        Case {
            id: "f6",
            name: "timeouts of request and backendRequest",
            rules: json!([
                timed("/timeout/request", &[("timeouts", json!({"request": "300ms"}))]),
                timed(
                    "/timeout/backend",
                    &[("timeouts", json!({"request": "5s", "backendRequest": "300ms"}))]
                ),
                timed("/timeout/none", &[("timeouts", json!({"request": "0s"}))]),
            ]),
            asks: vec![
                Ask::get("/timeout/request", 200),
                Ask::get("/timeout/request?delay_ms=3000", 504),
                Ask::get("/timeout/backend?delay_ms=3000", 504),
                Ask::get("/timeout/none?delay_ms=1000", 200),
            ],
        },
        Case {
            id: "f7",
            name: "retry of a status that heals, as often as asked",
            rules: json!([
                timed(
                    "/retry/three",
                    &[("retry", json!({"codes": [503], "attempts": 3, "backoff": "10ms"}))]
                ),
                timed("/retry/none", &[]),
            ]),
            asks: vec![
                Ask::get("/retry/three?fail=2&key=NONCE", 200).echo("/attempt", 3),
                Ask::get("/retry/none?fail=1&key=NONCE", 503).echo("/attempt", 1),
            ],
        },
    ]
}
