//! Status of GatewayClasses, Gateways and ListenerSets.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds::keys;
use fairlead_model::snapshot::Address;
use fairlead_model::{Json, MemberId, Reason};
use serde_json::json;

use super::condition::{Stamp, Wanted, conditions};
use super::{MemberSummary, base};
use crate::ingest::hub::{
    CertificateFault, ClassVerdict, Conflict, GatewayVerdict, ListenerSetVerdict, ListenerVerdict,
    Verdict,
};
use crate::{names, raw};

/// Most addresses, as the Gateway API says.
const ADDRESSES_MAX: usize = 16;

/// Features of the Gateway API that cross between members as in one cluster, in order; docs/guide/routes.md
/// names the test of each. What a member's gateway cannot do is said at the route.
const FEATURES: [&str; 30] = [
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "HTTPRoute",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeTerminate",
    "UDPRoute",
];

/// What members make of a global gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GatewayFacts {
    /// Addresses of the members' Gateways that are programmed.
    pub addresses: BTreeSet<Address>,
    /// Members whose Gateway is programmed with every listener, and those whose is not.
    pub members: MemberSummary,
    /// Of the latter, those whose Gateway is programmed but for some listeners.
    pub in_part: u32,
    /// Those listeners, by their name in members, and why in which member.
    pub failing: BTreeMap<String, BTreeMap<MemberId, String>>,
}

impl GatewayFacts {
    /// What members make of one listener.
    fn of_listener(&self, name: &str) -> MemberSummary {
        let mut members = self.members.clone();
        members.as_asked = members.as_asked.saturating_add(self.in_part);
        members.differing.retain(|_, (reason, _)| *reason != Reason::ListenerNotProgrammed);
        for (member, why) in self.failing.get(name).into_iter().flatten() {
            let why = (Reason::ListenerNotProgrammed, why.clone());
            if members.differing.insert(member.clone(), why).is_none() {
                members.as_asked = members.as_asked.saturating_sub(1);
            }
        }
        members
    }
}

/// Status of a GatewayClass of ours.
pub fn gateway_class_status(existing: &Json, verdict: &ClassVerdict, now: &str) -> Json {
    let stamp = Stamp { generation: verdict.generation, now };
    let mut accepted = Wanted::of(keys::CONDITION_ACCEPTED, "Accepted", &verdict.accepted);
    if !verdict.accepted.is_yes() {
        accepted.reason = "InvalidParameters".to_owned();
    }
    let mut status = base(existing);
    status["conditions"] = conditions(
        raw::list(existing, "/conditions"),
        &[keys::CONDITION_ACCEPTED],
        vec![accepted],
        stamp,
    );
    status["supportedFeatures"] = FEATURES.iter().map(|name| json!({"name": name})).collect();
    status
}

/// Status of a global gateway.
pub fn gateway_status(
    existing: &Json,
    verdict: &GatewayVerdict,
    facts: &GatewayFacts,
    now: &str,
) -> Json {
    let stamp = Stamp { generation: verdict.generation, now };
    let mut status = base(existing);
    let mut wanted = vec![
        accepted(&verdict.accepted, &verdict.listeners),
        programmed(verdict.accepted.is_yes(), &facts.members, facts.in_part),
        all_resolved(verdict),
    ];
    // Only while it is so, as the Gateway API asks.
    if verdict.lets_invalid_clients_in {
        let text = "clients whose certificate is missing or not valid are let in";
        let kind = keys::CONDITION_INSECURE_FRONTEND;
        wanted.push(Wanted::new(kind, "True", "ConfigurationChanged", text));
    }
    let ours = [
        keys::CONDITION_ACCEPTED,
        keys::CONDITION_PROGRAMMED,
        keys::CONDITION_RESOLVED_REFS,
        keys::CONDITION_INSECURE_FRONTEND,
    ];
    status["conditions"] = conditions(raw::list(existing, "/conditions"), &ours, wanted, stamp);
    let listener = |listener: &ListenerVerdict| {
        let members = facts.of_listener(&listener.name);
        listener_status(existing, listener, &members, stamp)
    };
    status["listeners"] = verdict.listeners.iter().map(listener).collect();
    // Only where there are some: older definitions do not know the field.
    if verdict.attached_sets > 0 {
        status["attachedListenerSets"] = verdict.attached_sets.into();
    } else {
        status.as_object_mut().expect("base is an object").remove("attachedListenerSets");
    }
    let addresses: Vec<Json> = facts.addresses.iter().take(ADDRESSES_MAX).map(address).collect();
    if addresses.is_empty() {
        status.as_object_mut().expect("base is an object").remove("addresses");
    } else {
        status["addresses"] = addresses.into();
    }
    status
}

/// Status of a ListenerSet.
pub fn listener_set_status(
    existing: &Json,
    verdict: &ListenerSetVerdict,
    facts: &GatewayFacts,
    now: &str,
) -> Json {
    let stamp = Stamp { generation: verdict.generation, now };
    let mut status = base(existing);
    let mut accepted = accepted(&verdict.accepted, &verdict.listeners);
    if let Verdict::No { reason: Reason::NotAllowedByListeners, .. } = verdict.accepted {
        accepted.reason = "NotAllowed".to_owned();
    } else if let Verdict::No { reason: Reason::NoMatchingParent, .. } = verdict.accepted {
        accepted.reason = "ParentNotAccepted".to_owned();
    }
    let of_set = |listener: &ListenerVerdict| {
        facts.of_listener(&names::set_listener(&verdict.name, &listener.name))
    };
    let programmed = programmed(verdict.accepted.is_yes(), &facts.members, facts.in_part);
    let wanted = vec![accepted, programmed];
    let ours = [keys::CONDITION_ACCEPTED, keys::CONDITION_PROGRAMMED];
    status["conditions"] = conditions(raw::list(existing, "/conditions"), &ours, wanted, stamp);
    let listener =
        |listener: &ListenerVerdict| listener_status(existing, listener, &of_set(listener), stamp);
    status["listeners"] = verdict.listeners.iter().map(listener).collect();
    status
}

fn accepted(verdict: &Verdict, listeners: &[ListenerVerdict]) -> Wanted {
    let refused: Vec<&str> = listeners
        .iter()
        .filter(|listener| !listener.accepted.is_yes())
        .map(|listener| &*listener.name)
        .collect();
    let mut wanted = Wanted::of(keys::CONDITION_ACCEPTED, "Accepted", verdict);
    if !refused.is_empty() || !verdict.is_yes() {
        wanted.reason = "ListenersNotValid".to_owned();
    }
    if verdict.is_yes() && !refused.is_empty() {
        wanted.message = raw::bounded(&format!("without listeners {}", refused.join(", ")));
    }
    wanted
}

fn programmed(usable: bool, members: &MemberSummary, in_part: u32) -> Wanted {
    let kind = keys::CONDITION_PROGRAMMED;
    if !usable {
        return Wanted::new(kind, "False", "Invalid", "it is not accepted");
    }
    if members.total() == 0 {
        return Wanted::new(
            kind,
            "False",
            "Pending",
            "no member serves it yet: lend a Gateway, or set gatewayClassName of a MemberCluster",
        );
    }
    // One member is enough to be reached; the message names those that are missing.
    let (status, reason) = if members.as_asked > 0 || in_part > 0 {
        ("True", "Programmed")
    } else {
        ("False", "Pending")
    };
    Wanted::new(kind, status, reason, members.sentence())
}

fn address(address: &Address) -> Json {
    let kind = match address {
        Address::Ip(_) => "IPAddress",
        Address::Name(_) => "Hostname",
    };
    json!({"type": kind, "value": address.to_string()})
}

fn listener_status(
    existing: &Json,
    listener: &ListenerVerdict,
    members: &MemberSummary,
    stamp: Stamp<'_>,
) -> Json {
    let before = raw::list(existing, "/listeners")
        .iter()
        .find(|status| raw::field(status, "name") == Some(&listener.name));
    let conflict = listener.conflict.map(|conflict| match conflict {
        Conflict::Protocol => "ProtocolConflict",
        Conflict::Hostname => "HostnameConflict",
    });
    let mut accepted = Wanted::of(keys::CONDITION_ACCEPTED, "Accepted", &listener.accepted);
    if let Verdict::No { reason: Reason::TooLarge, .. } = listener.accepted {
        accepted.reason = "TooManyListeners".to_owned();
    }
    let conflicted = match (conflict, &listener.accepted) {
        (Some(reason), Verdict::No { message, .. }) => {
            accepted.reason = reason.to_owned();
            Wanted::new(keys::CONDITION_CONFLICTED, "True", reason, message)
        }
        _ => Wanted::new(keys::CONDITION_CONFLICTED, "False", "NoConflicts", ""),
    };
    let resolved = resolved(listener);
    let usable = listener.accepted.is_yes() && listener.certificates.is_none();
    let mut programmed = programmed(usable, members, 0);
    let is_own = |(reason, _): &(Reason, String)| *reason == Reason::ListenerNotProgrammed;
    if !members.differing.values().any(is_own) {
        programmed.message.clear(); // Said once, at the Gateway.
    }
    let ours = [
        keys::CONDITION_ACCEPTED,
        keys::CONDITION_CONFLICTED,
        keys::CONDITION_RESOLVED_REFS,
        keys::CONDITION_PROGRAMMED,
        keys::CONDITION_OVERLAPPING_TLS,
    ];
    let mut wanted = vec![accepted, conflicted, resolved, programmed];
    if let Some(other) = &listener.overlaps {
        let text = format!("listener {other} of this port takes some of its hostnames, too");
        let kind = keys::CONDITION_OVERLAPPING_TLS;
        wanted.push(Wanted::new(kind, "True", "OverlappingHostnames", text));
    }
    let kind = |kind: &fairlead_model::RouteKind| json!({"group": keys::GATEWAY_GROUP, "kind": kind.as_str()});
    json!({
        "name": listener.name,
        "supportedKinds": listener.kinds.iter().map(kind).collect::<Vec<_>>(),
        "attachedRoutes": listener.attached,
        "conditions": conditions(before.map_or(&[][..], |b| raw::list(b, "/conditions")), &ours, wanted, stamp),
    })
}

/// References of the Gateway itself, then those of its listeners.
fn all_resolved(verdict: &GatewayVerdict) -> Wanted {
    let no = |reason: &str, message: &str| {
        Wanted::new(keys::CONDITION_RESOLVED_REFS, "False", reason, message)
    };
    match &verdict.client_certificate {
        Some(CertificateFault::NotPermitted(message)) => return no("RefNotPermitted", message),
        Some(CertificateFault::Invalid(message)) => {
            return no("InvalidClientCertificateRef", message);
        }
        None => {}
    }
    let of = |listener: &ListenerVerdict| resolved(listener).status == "False";
    let names: Vec<&str> =
        verdict.listeners.iter().filter(|l| of(l)).map(|listener| &*listener.name).collect();
    if names.is_empty() {
        return Wanted::new(keys::CONDITION_RESOLVED_REFS, "True", "ResolvedRefs", "");
    }
    no("ListenersNotResolved", &format!("see listeners {}", names.join(", ")))
}

fn resolved(listener: &ListenerVerdict) -> Wanted {
    let no = |reason: &str, message: &str| {
        Wanted::new(keys::CONDITION_RESOLVED_REFS, "False", reason, message)
    };
    match &listener.certificates {
        Some(CertificateFault::Invalid(message)) => no("InvalidCertificateRef", message),
        Some(CertificateFault::NotPermitted(message)) => no("RefNotPermitted", message),
        None if listener.has_invalid_kinds => {
            no("InvalidRouteKinds", "allowedRoutes names kinds that this protocol does not carry")
        }
        None => Wanted::new(keys::CONDITION_RESOLVED_REFS, "True", "ResolvedRefs", ""),
    }
}
