//! A canary Ingress: part of the requests of another one with the same hosts and paths.

use std::collections::BTreeSet;

use fairlead_model::{Json, NsName};
use serde_json::json;

use super::{Ingress, Weight, Work, path};

/// Puts a canary into the routes that were made already.
pub(super) fn merge(canary: &Ingress<'_>, work: &mut Work<'_>, exports: &mut BTreeSet<NsName>) {
    let Some(settings) = &canary.settings.canary else { return };
    if settings.weight.is_none() && settings.header.is_none() {
        work.say(canary, Weight::Person, "a canary without weight or header takes no requests");
    }
    for rule in canary.rules() {
        let host = rule["host"].as_str();
        for written in rule["http"]["paths"].as_array().into_iter().flatten() {
            let Ok(found) = path::read(written, &canary.settings) else { continue };
            let Some(backend) = work.backend(canary, &written["backend"]) else { continue };
            let taken = (&*canary.name.namespace, host, &found.path);
            let Some(at) = find(work, taken) else {
                let message = format!("no Ingress has its host and path {}", found.path["value"]);
                work.say(canary, Weight::Person, message);
                continue;
            };
            let name = backend["name"].as_str().unwrap_or_default();
            exports.insert(NsName::new(&canary.name.namespace, name));
            add(work, at, &backend, settings);
        }
    }
}

fn find(
    work: &Work<'_>,
    (namespace, host, path): (&str, Option<&str>, &Json),
) -> Option<(usize, usize)> {
    work.routes.iter().enumerate().find_map(|(route, draft)| {
        let same = *draft.ingress.namespace == *namespace
            && draft.hostnames.first().map(String::as_str) == host;
        let is_path = |rule: &Json| rule["matches"][0]["path"] == *path;
        let rule = draft.rules.iter().position(is_path).filter(|_| same)?;
        Some((route, rule))
    })
}

fn add(
    work: &mut Work<'_>,
    (route, rule): (usize, usize),
    backend: &Json,
    settings: &super::annotation::Canary,
) {
    let draft = &mut work.routes[route];
    if let Some((name, value)) = &settings.header {
        let mut special = draft.rules[rule].clone();
        special["matches"][0]["headers"] = json!([{"name": name, "value": value}]);
        special["backendRefs"] = json!([backend]);
        draft.rules.push(special);
    }
    if let Some(weight) = settings.weight {
        let weight = weight.min(100);
        let Some(backends) = draft.rules[rule]["backendRefs"].as_array_mut() else { return };
        for old in backends.iter_mut() {
            old["weight"] = json!(100 - weight);
        }
        let mut new = backend.clone();
        new["weight"] = json!(weight);
        backends.push(new);
    }
}
