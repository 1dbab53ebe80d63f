//! What a member's gateway says about a route of ours.

use fairlead_model::{Json, Reason};

use crate::raw;

/// Whether a controller accepted a route as it is now, and why not. None: it has not said yet.
///
/// Only entries of `controller` count (others share the list), only conditions of the current
/// generation, and every parent of the spec must have spoken before the answer is yes.
pub fn ingest_route_acceptance(route: &Json, controller: &str) -> Option<(bool, Reason, String)> {
    let generation = raw::generation(route);
    let entries: Vec<&Json> = raw::list(route, "/status/parents")
        .iter()
        .filter(|entry| raw::field(entry, "controllerName") == Some(controller))
        .collect();
    let found = |kind: &str| {
        entries
            .iter()
            .map(|entry| raw::condition(raw::list(entry, "/conditions"), kind, generation))
            .collect::<Vec<_>>()
    };
    let (accepted, resolved) = (found("Accepted"), found("ResolvedRefs"));
    let refused = accepted.iter().chain(&resolved).flatten().find(|c| c.verdict() == Some(false));
    if let Some(refused) = refused {
        return Some(answer(refused));
    }
    if let Some(partly) =
        found("PartiallyInvalid").iter().flatten().find(|c| c.verdict() == Some(true))
    {
        return Some(answer(partly));
    }
    let all = |conditions: &[Option<raw::Condition<'_>>]| {
        conditions.iter().all(|c| c.is_some_and(|c| c.verdict() == Some(true)))
    };
    let parents = raw::list(route, "/spec/parentRefs").len();
    let complete =
        !entries.is_empty() && entries.len() >= parents && all(&accepted) && all(&resolved);
    complete.then(|| (true, Reason::AsAsked, String::new()))
}

fn answer(condition: &raw::Condition<'_>) -> (bool, Reason, String) {
    let reason = reason_of(condition.reason);
    (false, reason, raw::bounded(&format!("{}: {}", condition.reason, condition.message)))
}

/// Reasons are an open set: what we do not know is kept in the message.
fn reason_of(text: &str) -> Reason {
    const PASSED_ON: [Reason; 8] = [
        Reason::NotAllowedByListeners,
        Reason::NoMatchingListenerHostname,
        Reason::NoMatchingParent,
        Reason::UnsupportedValue,
        Reason::BackendNotFound,
        Reason::InvalidKind,
        Reason::RefNotPermitted,
        Reason::UnsupportedProtocol,
    ];
    let known = PASSED_ON.into_iter().find(|reason| reason.as_str() == text);
    known.unwrap_or(Reason::NotAcceptedByGateway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const GW: &str = "example.com/gw";

    fn entry(controller: &str, generation: i64, accepted: &str, resolved: &str) -> Json {
        let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "observedGeneration": generation, "reason": reason, "message": "m"});
        json!({"controllerName": controller, "conditions": [
            condition("Accepted", accepted, "Odd"), condition("ResolvedRefs", resolved, "BackendNotFound")]})
    }

    fn of(entries: Json) -> Option<(bool, Reason, String)> {
        let parents = json!([{"name": "a"}]);
        ingest_route_acceptance(
            &json!({"metadata": {"generation": 2}, "spec": {"parentRefs": parents}, "status": {"parents": entries}}),
            GW,
        )
    }

    fn no(reason: Reason, message: &str) -> Option<(bool, Reason, String)> {
        Some((false, reason, message.to_owned()))
    }

    #[test]
    fn accepted_and_resolved_is_yes() {
        assert_eq!(
            of(json!([entry(GW, 2, "True", "True")])),
            Some((true, Reason::AsAsked, String::new()))
        );
    }

    #[test]
    fn silence_is_unknown() {
        assert_eq!(of(json!([])), None);
        assert_eq!(of(json!([entry(GW, 1, "False", "False")])), None);
        assert_eq!(of(json!([entry(GW, 2, "Unknown", "True")])), None);
        assert_eq!(of(json!([{"controllerName": GW, "conditions": []}])), None);
    }

    #[test]
    fn entries_of_other_controllers_do_not_count() {
        assert_eq!(of(json!([entry("other.com/x", 2, "True", "True")])), None);
        assert!(
            of(json!([entry("other.com/x", 2, "False", "True"), entry(GW, 2, "True", "True")]))
                .is_some_and(|a| a.0)
        );
    }

    #[test]
    fn refusals_carry_their_reason_and_unknown_reasons_their_words() {
        assert_eq!(
            of(json!([entry(GW, 2, "True", "False")])),
            no(Reason::BackendNotFound, "BackendNotFound: m")
        );
        assert_eq!(
            of(json!([entry(GW, 2, "False", "True")])),
            no(Reason::NotAcceptedByGateway, "Odd: m")
        );
    }

    #[test]
    fn every_parent_must_have_spoken() {
        let route = |entries: Json| {
            json!({"metadata": {"generation": 2}, "spec": {"parentRefs": [{"name": "a"}, {"name": "b"}]},
                "status": {"parents": entries}})
        };
        let one = entry(GW, 2, "True", "True");
        assert_eq!(ingest_route_acceptance(&route(json!([one])), GW), None);
        assert!(ingest_route_acceptance(&route(json!([one, one])), GW).is_some_and(|a| a.0));
    }
}
