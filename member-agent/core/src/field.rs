//! Fields that a member's definitions do not know.
//!
//! A definition that is older than the plan would drop such a field, and a rule without one of its
//! matches matches more. So applies are strict; what the API server then complains about is read
//! here, and the rules that use it are left out before the next try. Nothing is ever widened: an
//! object in which such a field stands outside of rules, or of which no rule is left, is left out as
//! a whole.

use std::collections::BTreeSet;

use fairlead_model::Json;

/// A path with its indices taken out: `spec`, `rules`, `*`, `timeouts`.
pub type Pattern = Vec<String>;

/// Most patterns that are remembered of one complaint.
const PATTERNS_MAX: usize = 32;

/// The fields that a refusal complains about; empty = it complains about something else.
pub fn unknown_fields(message: &str) -> BTreeSet<Pattern> {
    let mut found = BTreeSet::new();
    // Server-side apply: `.spec.rules[0].x: field not declared in schema`.
    for (before, _) in message.match_indices(": field not declared in schema") {
        let head = &message[..before];
        let start = head.rfind(|c: char| c.is_whitespace()).map_or(0, |at| at + 1);
        found.extend(pattern_of(&head[start..]));
    }
    // Strict decoding: `unknown field "spec.rules[0].x"`.
    for (at, mark) in message.match_indices("unknown field \"") {
        let rest = &message[at + mark.len()..];
        found.extend(rest.split_once('"').and_then(|(path, _)| pattern_of(path)));
    }
    found.into_iter().take(PATTERNS_MAX).collect()
}

fn pattern_of(path: &str) -> Option<Pattern> {
    let mut steps = Vec::new();
    for part in path.trim_start_matches('.').split('.') {
        let (name, index) = part.split_once('[').map_or((part, None), |(n, i)| (n, Some(i)));
        if name.is_empty() && index.is_none() {
            return None;
        }
        if !name.is_empty() {
            steps.push(name.to_owned());
        }
        if index.is_some() {
            steps.push("*".to_owned());
        }
    }
    (!steps.is_empty()).then_some(steps)
}

/// The object without the rules that use one of these fields; none = it cannot be applied at all.
/// The text names what was left out, and is empty when nothing was.
pub fn leave_out(content: &Json, unknown: &BTreeSet<Pattern>) -> (Option<Json>, String) {
    let met: Vec<&Pattern> = unknown.iter().filter(|p| has(content, p)).collect();
    if met.is_empty() {
        return (Some(content.clone()), String::new());
    }
    let names: Vec<String> = met.iter().map(|pattern| pattern.join(".")).collect();
    let names = names.join(", ");
    let in_rule =
        |pattern: &Pattern| pattern.starts_with(&["spec", "rules", "*"].map(str::to_owned));
    if !met.iter().all(|pattern| in_rule(pattern) && pattern.len() > 3) {
        let text =
            format!("this cluster's definition does not know {names}; the object is left out");
        return (None, text);
    }
    let mut reduced = content.clone();
    let Some(rules) = reduced.pointer_mut("/spec/rules").and_then(Json::as_array_mut) else {
        return (None, names);
    };
    let before = rules.len();
    rules.retain(|rule| !met.iter().any(|pattern| has(rule, &pattern[3..])));
    let (left_out, none_left) = (before - rules.len(), rules.is_empty());
    if none_left {
        let text = format!("this cluster's definition does not know {names}; no rule is left");
        return (None, text);
    }
    let text = format!(
        "this cluster's definition does not know {names}; {left_out} of {before} rules are left out"
    );
    (Some(reduced), text)
}

fn has(value: &Json, pattern: &[String]) -> bool {
    let Some((step, rest)) = pattern.split_first() else { return true };
    match value {
        Json::Array(items) if step == "*" => items.iter().any(|item| has(item, rest)),
        Json::Object(fields) => fields.get(step).is_some_and(|value| has(value, rest)),
        _ => false,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    fn route() -> Json {
        json!({"spec": {"hostnames": ["a"], "rules": [
            {"name": "old", "matches": [{"path": {"value": "/"}}]},
            {"name": "new", "matches": [{"path": {"value": "/x"}, "cookies": [{"name": "c"}]}]}]}})
    }

    #[test]
    fn both_forms_of_complaint_are_understood() {
        let apply = "failed to create typed patch object (shop/cart; g/v1, Kind=HTTPRoute): \
                     .spec.rules[1].matches[0].cookies: field not declared in schema";
        let strict = "HTTPRoute in version \"v1\" cannot be handled: strict decoding error: \
                      unknown field \"spec.rules[1].matches[0].cookies\", unknown field \"spec.x\"";
        let cookies = ["spec", "rules", "*", "matches", "*", "cookies"].map(str::to_owned).to_vec();
        assert_eq!(unknown_fields(apply), [cookies.clone()].into());
        assert_eq!(
            unknown_fields(strict),
            [cookies, vec!["spec".to_owned(), "x".to_owned()]].into()
        );
        let keyed = "errors:\n  .spec.listeners[name=\"http\"].tls.frontend: field not declared in schema\n";
        let steps = ["spec", "listeners", "*", "tls", "frontend"].map(str::to_owned).to_vec();
        assert_eq!(unknown_fields(keyed), [steps].into());
        assert!(unknown_fields("admission webhook denied the request").is_empty());
    }

    #[test]
    fn a_rule_with_such_a_field_is_left_out_and_the_others_stay() {
        let unknown =
            unknown_fields(".spec.rules[0].matches[3].cookies: field not declared in schema");
        let (reduced, text) = leave_out(&route(), &unknown);
        assert_eq!(reduced.unwrap()["spec"]["rules"].as_array().unwrap().len(), 1);
        assert!(text.contains("1 of 2 rules"), "{text}");
    }

    #[test]
    fn an_object_that_would_be_widened_is_left_out() {
        let outside = unknown_fields(".spec.hostnames: field not declared in schema");
        assert_eq!(leave_out(&route(), &outside).0, None);
        let every = unknown_fields(".spec.rules[0].name: field not declared in schema");
        assert_eq!(leave_out(&route(), &every).0, None);
        let rules = unknown_fields(".spec.rules: field not declared in schema");
        assert_eq!(leave_out(&route(), &rules).0, None);
    }

    #[test]
    fn an_object_without_such_a_field_stays_as_it_is() {
        let unknown = unknown_fields(".spec.rules[0].retry: field not declared in schema");
        assert_eq!(leave_out(&route(), &unknown), (Some(route()), String::new()));
    }
}
