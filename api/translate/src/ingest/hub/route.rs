//! A route of the hub → a global route, and what is said of it.

use std::sync::Arc;

use fairlead_model::policy::{BackendTarget, GlobalRoute, Rule};
use fairlead_model::{Json, Note, Reason, RouteKey};

use super::attach::Attachment;
use super::grant::Grants;
use super::rule::RuleReader;
use super::verdict::{RouteVerdict, Verdict};
use crate::raw;

/// Most rules of a route, as the Gateway API says.
const RULES_MAX: usize = 16;

/// Reads a route that names a Gateway of ours as a parent; none for any other. The global route is
/// there when a parent takes it.
pub(super) fn ingest_route(
    key: &RouteKey,
    route: &Json,
    attachment: Attachment,
    grants: &Grants,
) -> Option<(RouteVerdict, Option<GlobalRoute>)> {
    if attachment.verdicts.is_empty() {
        return None;
    }
    let mut verdict = RouteVerdict {
        generation: raw::generation(route),
        parents: attachment.verdicts,
        ..RouteVerdict::default()
    };
    let mut spec = route.get("spec").cloned().unwrap_or_default();
    let rules = match read_rules(key, &mut spec, grants, &mut verdict) {
        Ok(rules) => rules,
        Err(message) => {
            refuse(&mut verdict, &message);
            return Some((verdict, None));
        }
    };
    verdict.resolved = resolved(&rules, &verdict.notes);
    let global = GlobalRoute {
        key: key.clone(),
        created_at: raw::created_at(route),
        labels: raw::texts(route, "/metadata/labels"),
        spec: Arc::new(spec),
        api_version: raw::text(route, "/apiVersion")
            .unwrap_or("gateway.networking.k8s.io/v1")
            .to_owned(),
        parents: attachment.accepted,
        rules,
    };
    let is_accepted = !global.parents.is_empty();
    Some((verdict, is_accepted.then_some(global)))
}

/// No parent takes a route of which nothing is left: it would match everything, or nothing.
fn refuse(verdict: &mut RouteVerdict, message: &str) {
    for parent in &mut verdict.parents {
        if parent.accepted.is_yes() {
            parent.accepted = Verdict::no(Reason::UnsupportedValue, message);
        }
    }
}

/// Reads the rules of a spec and takes out those that cannot be read, so that positions in spec and
/// model agree.
fn read_rules(
    key: &RouteKey,
    spec: &mut Json,
    grants: &Grants,
    verdict: &mut RouteVerdict,
) -> Result<Vec<Rule>, String> {
    let rules = match spec.get_mut("rules") {
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(Json::Array(rules)) => rules,
        Some(_) => return Err("spec.rules is no list".to_owned()),
    };
    let reader = RuleReader { key, grants };
    let written = std::mem::take(rules);
    let count = written.len();
    let mut read = Vec::new();
    for (at, mut rule) in written.into_iter().enumerate() {
        let subject = format!("{key} rules[{at}]");
        if at >= RULES_MAX {
            let message = format!("a route has at most {RULES_MAX} rules; left out");
            verdict.notes.push(Note::new(subject, Reason::TooLarge, message));
            continue;
        }
        match reader.read(&mut rule, &subject) {
            Ok((found, notes)) => {
                verdict.notes.extend(notes);
                rules.push(rule);
                read.push(found);
            }
            Err(note) => verdict.notes.push(note),
        }
    }
    let dropped = count - read.len();
    if dropped > 0 && read.is_empty() {
        return Err("no rule of it can be read".to_owned());
    }
    if dropped > 0 {
        verdict.partially_invalid = Some(format!(
            "Dropped Rule: {dropped} of {count} rules cannot be used and are left out"
        ));
    }
    Ok(read)
}

/// The first reference that leads nowhere, backends before mirrors.
fn resolved(rules: &[Rule], notes: &[Note]) -> Verdict {
    let invalid = rules.iter().flat_map(|rule| &rule.backends).find_map(|b| match &b.target {
        BackendTarget::Invalid(note) => Some(note),
        BackendTarget::Own | BackendTarget::Global { .. } => None,
    });
    let mirror = || notes.iter().find(|note| note.reason == Reason::RefNotPermitted);
    match invalid.or_else(mirror) {
        Some(note) => Verdict::no(note.reason, format!("{}: {}", note.subject, note.message)),
        None => Verdict::Yes,
    }
}
