//! One feature: rules, requests, what each must come to, and the comparison of both sides.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use serde_json::{Value, json};

use super::{Side, Stage};
use crate::{
    echo::Answer,
    report::{Figures, Finding},
};

/// A feature of the Gateway API.
pub(super) struct Case {
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    pub(super) rules: Value,
    pub(super) asks: Vec<Ask>,
}

/// A request, and what must become of it. Texts may hold `DOMAIN`, and `NONCE` for a text that no
/// other request had.
pub(super) struct Ask {
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    status: u16,
    wanted: Vec<Wanted>,
}

/// What an answer must have, beyond its status.
enum Wanted {
    /// A value in the echo's JSON, by pointer.
    Echo(&'static str, Value),
    /// A header of the response; empty = none.
    Header(&'static str, &'static str),
}

impl Ask {
    pub(super) fn get(path: &'static str, status: u16) -> Self {
        Self::new("GET", path, status)
    }

    pub(super) fn new(method: &'static str, path: &'static str, status: u16) -> Self {
        Self { method, path, headers: Vec::new(), status, wanted: Vec::new() }
    }

    pub(super) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The rule that must have been taken, by the header that it sets.
    pub(super) fn rule(self, name: &'static str) -> Self {
        self.echo("/headers/x-rule/0", name)
    }

    pub(super) fn echo(mut self, pointer: &'static str, value: impl Into<Value>) -> Self {
        self.wanted.push(Wanted::Echo(pointer, value.into()));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.wanted.push(Wanted::Header(name, value));
        self
    }
}

/// A filter by which an echo tells which rule was taken.
pub(super) fn mark(rule: &str) -> Value {
    json!({
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {"set": [{"name": "x-rule", "value": rule}]},
    })
}

/// Longer than any request of a case should take.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// Headers that say how many gateways a request passed, or are made anew for each.
const OWN_HEADERS: [&str; 4] = ["x-forwarded-for", "x-request-id", "date", "content-length"];

/// Asks both sides everything.
pub(super) async fn play(stage: &Stage<'_>, case: &Case) -> Result<Finding> {
    let mut holds = true;
    let mut more = Figures::new();
    more.insert("requests".into(), json!(case.asks.len()));
    for ask in &case.asks {
        let mut outlines = BTreeMap::new();
        for side in Side::BOTH {
            let outline = outline(stage, ask, side).await;
            let outline = outline.with_context(|| format!("{} {}", ask.path, side.domain()))?;
            if let Some(why) = ask.broken(&outline) {
                holds = false;
                more.insert(format!("{} {}", side.domain(), ask.path), json!(why));
            }
            outlines.insert(side.domain(), outline);
        }
        let (fleet, plain) = (&outlines[Side::Fleet.domain()], &outlines[Side::Plain.domain()]);
        if fleet != plain {
            holds = false;
            more.insert(format!("differs {}", ask.path), difference(fleet, plain));
        }
    }
    Ok(Finding::new(holds, more))
}

/// What a client and the service saw, without what names the side.
async fn outline(stage: &Stage<'_>, ask: &Ask, side: Side) -> Result<Value> {
    static NONCE: AtomicU64 = AtomicU64::new(0);
    let nonce = format!("nonce{:08}", NONCE.fetch_add(1, Ordering::Relaxed));
    let fill = |text: &str| text.replace("DOMAIN", side.domain()).replace("NONCE", &nonce);
    let mut request = Request::builder()
        .method(ask.method)
        .uri(fill(ask.path))
        .header("host", format!("http.{}", side.domain()));
    for (name, value) in &ask.headers {
        request = request.header(*name, fill(value));
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let answer = crate::http1::send(stage.address(side), request);
    let answer = tokio::time::timeout(ASK_LIMIT, answer).await.context("no answer in time")??;
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in answer.headers() {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.entry(name.to_string()).or_default().push(value);
    }
    let echo: Option<Answer> = serde_json::from_slice(answer.body()).ok();
    let outline = json!({
        "status": answer.status().as_u16(),
        "headers": shared(headers),
        "echo": echo.map(|echo| json!({
            "service": echo.identity.service,
            "cluster": echo.identity.cluster,
            "method": echo.method,
            "path": echo.path,
            "host": echo.host,
            "attempt": echo.attempt,
            "body_bytes": echo.body_bytes,
            "headers": shared(echo.headers),
        })),
    });
    let text = outline.to_string().replace(side.domain(), "DOMAIN").replace(&nonce, "NONCE");
    Ok(serde_json::from_str(&text)?)
}

/// Headers without those that belong to the way: see docs/guide/routes.md for what they say.
fn shared(headers: BTreeMap<String, Vec<String>>) -> BTreeMap<String, Vec<String>> {
    let own = |name: &str| OWN_HEADERS.contains(&name) || name.starts_with("x-envoy-");
    headers.into_iter().filter(|(name, _)| !own(name)).collect()
}

impl Ask {
    /// Why an outline is not what was asked for.
    fn broken(&self, outline: &Value) -> Option<String> {
        if outline["status"] != self.status {
            return Some(format!("is {} and not {}", outline["status"], self.status));
        }
        self.wanted.iter().find_map(|wanted| match wanted {
            Wanted::Echo(pointer, value) => {
                let found = outline["echo"].pointer(pointer).cloned().unwrap_or_default();
                (found != *value).then(|| format!("{pointer} is {found} and not {value}"))
            }
            Wanted::Header(name, value) => {
                let found = outline["headers"][name][0].as_str().unwrap_or_default();
                (found != *value).then(|| format!("{name} is {found:?} and not {value:?}"))
            }
        })
    }
}

/// The parts of two outlines that differ, as `[fleet, plain]`.
fn difference(fleet: &Value, plain: &Value) -> Value {
    let (Value::Object(one), Value::Object(two)) = (fleet, plain) else {
        return json!([fleet, plain]);
    };
    let names = one.keys().chain(two.keys());
    let differing = names.filter(|name| one.get(*name) != two.get(*name));
    let none = Value::Null;
    let part = |name: &String| {
        let (one, two) = (one.get(name).unwrap_or(&none), two.get(name).unwrap_or(&none));
        (name.clone(), difference(one, two))
    };
    json!(differing.map(part).collect::<BTreeMap<_, _>>())
}
