//! What differs between two versions of a route, as its user would say it.

use std::collections::BTreeSet;

use fairlead_model::Json;
use fairlead_model::history::CAUSES_MAX;
use fairlead_model::policy::{GlobalRoute, Rule, Spread};

/// Differences in words, at most [`CAUSES_MAX`]. Never a value of a filter: those may be secret.
pub(crate) fn differences(old: &GlobalRoute, new: &GlobalRoute) -> Vec<String> {
    let mut told = Vec::new();
    for field in fields(&old.spec, &new.spec, &["rules"]) {
        told.push(format!("spec.{field} differs"));
    }
    if old.rules.len() != new.rules.len() {
        told.push(format!("{} rules, before {}", new.rules.len(), old.rules.len()));
    }
    for (at, (before, after)) in old.rules.iter().zip(&new.rules).enumerate() {
        let pointer = format!("/rules/{at}");
        let raw = |route: &GlobalRoute| route.spec.pointer(&pointer).cloned().unwrap_or_default();
        told.extend(
            rule((before, &raw(old)), (after, &raw(new)))
                .map(|what| format!("rules[{at}]: {what}")),
        );
    }
    if told.len() > CAUSES_MAX {
        let more = told.len() - CAUSES_MAX + 1;
        told.truncate(CAUSES_MAX - 1);
        told.push(format!("and {more} more"));
    }
    told
}

/// Names of the fields of two objects that differ.
fn fields(old: &Json, new: &Json, without: &[&str]) -> Vec<String> {
    let names = |json: &Json| -> BTreeSet<String> {
        json.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let all: BTreeSet<String> = names(old).union(&names(new)).cloned().collect();
    let differs = |name: &String| old.get(name) != new.get(name);
    all.into_iter().filter(|name| !without.contains(&name.as_str()) && differs(name)).collect()
}

fn rule(
    (old, old_raw): (&Rule, &Json),
    (new, new_raw): (&Rule, &Json),
) -> impl Iterator<Item = String> {
    let weights = |rule: &Rule| -> Vec<String> {
        rule.backends.iter().map(|backend| backend.weight.to_string()).collect()
    };
    let mut told = Vec::new();
    let (before, after) = (weights(old), weights(new));
    if before != after {
        told.push(format!("weights {} → {}", before.join(":"), after.join(":")));
    } else if old.backends != new.backends || old.mirrors != new.mirrors {
        told.push("leads elsewhere".to_owned());
    }
    let of_user = fields(old_raw, new_raw, &["backendRefs"]);
    if !of_user.is_empty() {
        told.push(format!("{} differ", of_user.join(", ")));
    }
    if told.is_empty() && old_raw != new_raw {
        told.push("backendRefs differ".to_owned());
    }
    told.extend(spread(&old.spread, &new.spread));
    told.into_iter()
}

fn spread(old: &Spread, new: &Spread) -> Option<String> {
    if old == new {
        return None;
    }
    let name =
        |spread: &Spread| spread.from.as_ref().map_or("none".to_owned(), ToString::to_string);
    Some(match old.from == new.from {
        true => format!("TrafficPolicy {} differs", name(new)),
        false => format!("TrafficPolicy {} → {}", name(old), name(new)),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fairlead_model::policy::{Backend, BackendTarget};
    use fairlead_model::{Millis, NsName, RouteKey, RouteKind};
    use serde_json::json;

    use super::*;

    fn mk_route(weights: &[u32], spec: Json) -> GlobalRoute {
        let target = || BackendTarget::Global { service: NsName::new("shop", "cart"), port: 80 };
        let backend = |weight: &u32| Backend { weight: *weight, target: target() };
        let rule = Rule {
            backends: weights.iter().map(backend).collect(),
            spread: Spread::default(),
            mirrors: Vec::new(),
        };
        GlobalRoute {
            key: RouteKey { kind: RouteKind::HTTPRoute, name: NsName::new("shop", "cart") },
            created_at: Millis(0),
            labels: Default::default(),
            spec: Arc::new(spec),
            api_version: "gateway.networking.k8s.io/v1".into(),
            parents: Vec::new(),
            rules: vec![rule],
        }
    }

    #[test]
    fn differences_are_named_and_not_quoted() {
        let secret = json!({"rules": [{"filters": [{"set": "hunter2"}], "backendRefs": [1]}]});
        let old = mk_route(&[80, 20], json!({"hostnames": ["a"], "rules": [{"backendRefs": [2]}]}));
        let mut new = mk_route(&[50, 50], secret);
        new.rules[0].spread.healthy_percent = 1;
        new.rules[0].spread.from = Some(NsName::new("shop", "p"));
        assert_eq!(
            differences(&old, &new),
            [
                "spec.hostnames differs",
                "rules[0]: weights 80:20 → 50:50",
                "rules[0]: filters differ",
                "rules[0]: TrafficPolicy none → shop/p"
            ]
        );
        assert_eq!(differences(&old, &old), [""; 0]);
    }
}
