//! GatewayClasses and Gateways of the hub: which are ours, and what their listeners take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_crds::keys;
use fairlead_model::policy::{GlobalGateway, LabelSelector, Listener};
use fairlead_model::{Json, NsName, Reason, RouteKind};

use super::grant::Grants;
use super::verdict::{
    CertificateFault, ClassVerdict, Conflict, GatewayVerdict, ListenerVerdict, Verdict,
};
use crate::ingest::hub::{hostname, spread};
use crate::raw;

/// Most listeners, as the Gateway API says.
pub(super) const LISTENERS_MAX: usize = 64;

/// A Gateway of ours: what attaches to it, what is said of it, and the model's side of it.
pub(super) struct HubGateway {
    /// What its status says.
    pub(super) verdict: GatewayVerdict,
    /// What its listeners take, in the order of the verdict.
    pub(super) doors: Vec<Admission>,
    /// Every listener that holds its port, those of ListenerSets included.
    pub(super) listeners: Vec<Listener>,
    /// Its place in the policy; none when it is not accepted.
    pub(super) global: Option<GlobalGateway>,
}

impl HubGateway {
    /// Its listeners: the ListenerSet that each is of, and its name there.
    pub(super) fn named(&self) -> impl Iterator<Item = (Option<&NsName>, &str)> {
        let pairs = self.verdict.listeners.iter().zip(&self.doors);
        pairs.map(|(listener, door)| (door.set.as_ref(), &*listener.name))
    }

    /// Whether the Gateway itself has a listener of that name.
    pub(super) fn has_listener(&self, name: &str) -> bool {
        let mut own = self.verdict.listeners.iter().zip(&self.doors);
        own.any(|(listener, door)| door.set.is_none() && listener.name == name)
    }
}

/// What one listener takes.
pub(super) struct Admission {
    pub(super) port: u16,
    pub(super) is_https: bool,
    pub(super) hostname: Option<String>,
    pub(super) namespaces: Namespaces,
    /// Namespace of its owner.
    pub(super) namespace: String,
    /// The ListenerSet that has it; none = the Gateway.
    pub(super) set: Option<NsName>,
}

/// From which namespaces somebody may attach.
pub(super) enum Namespaces {
    All,
    Same,
    Selected(LabelSelector),
    /// What cannot be read lets nobody in.
    Nobody,
}

impl Namespaces {
    /// Whether somebody of a namespace with these labels may attach to what is in namespace `own`.
    pub(super) fn admit(
        &self,
        own: &str,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        match self {
            Self::All => true,
            Self::Same => namespace == own,
            Self::Selected(selector) => selector.matches(labels),
            Self::Nobody => false,
        }
    }
}

/// GatewayClasses of our controller.
pub(super) fn ingest_classes(classes: &BTreeMap<String, Json>) -> BTreeMap<String, ClassVerdict> {
    let ours = |class: &&Json| {
        raw::text(class, "/spec/controllerName") == Some(keys::CONTROLLER_NAME)
            && !raw::is_deleting(class)
    };
    let verdict = |class: &Json| {
        let has_parameters = class.pointer("/spec/parametersRef").is_some_and(Json::is_object);
        let accepted = if has_parameters {
            Verdict::no(Reason::UnsupportedValue, "this class takes no parametersRef; remove it")
        } else {
            Verdict::Yes
        };
        ClassVerdict { generation: raw::generation(class), accepted }
    };
    classes
        .iter()
        .filter(|(_, class)| ours(class))
        .map(|(name, class)| (name.clone(), verdict(class)))
        .collect()
}

/// Gateways of accepted classes of ours.
pub(super) fn ingest_gateways(
    gateways: &BTreeMap<NsName, Json>,
    classes: &BTreeMap<String, ClassVerdict>,
    grants: &Grants,
) -> BTreeMap<NsName, HubGateway> {
    let is_ours = |gateway: &Json| {
        let class = raw::text(gateway, "/spec/gatewayClassName").and_then(|name| classes.get(name));
        class.is_some_and(|class| class.accepted.is_yes())
            && !raw::is_deleting(gateway)
            && !raw::is_ours(gateway)
    };
    gateways
        .iter()
        .filter(|(_, gateway)| is_ours(gateway))
        .map(|(name, gateway)| (name.clone(), ingest_gateway(name, gateway, grants)))
        .collect()
}

/// Whose listeners are read.
pub(super) struct Owner<'a> {
    /// Kind of the Gateway API, for grants.
    pub(super) kind: &'static str,
    pub(super) name: &'a NsName,
}

/// A listener as it is written.
pub(super) struct Read {
    pub(super) listener: Listener,
    pub(super) door: Admission,
    pub(super) verdict: ListenerVerdict,
    pub(super) written: Json,
}

/// Reads listeners. Those that no API server lets in are left out; they take nothing.
pub(super) fn read_listeners(owner: &Owner<'_>, written: &[Json], grants: &Grants) -> Vec<Read> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for written in written.iter().take(LISTENERS_MAX) {
        let (Some(name), Some(port)) = (raw::field(written, "name"), raw::port(written, "port"))
        else {
            continue;
        };
        if !seen.insert(name) {
            continue;
        }
        let listener = Listener {
            name: name.to_owned(),
            port,
            protocol: raw::field(written, "protocol").unwrap_or_default().to_owned(),
            hostname: raw::field(written, "hostname").map(str::to_owned),
        };
        let (kinds, has_invalid_kinds) = kinds(&listener.protocol, written);
        let verdict = ListenerVerdict {
            name: listener.name.clone(),
            has_invalid_kinds,
            certificates: certificate_fault(&listener.protocol, written, owner, grants),
            kinds,
            ..ListenerVerdict::default()
        };
        let door = Admission {
            port,
            is_https: listener.protocol == "HTTPS",
            hostname: listener.hostname.clone(),
            namespaces: namespaces(written),
            namespace: owner.name.namespace.to_string(),
            set: None,
        };
        all.push(Read { listener, door, verdict, written: written.clone() });
    }
    all
}

fn ingest_gateway(name: &NsName, gateway: &Json, grants: &Grants) -> HubGateway {
    let owner = Owner { kind: "Gateway", name };
    let (mut listeners, mut doors, mut verdicts) = (Vec::new(), Vec::new(), Vec::new());
    for read in read_listeners(&owner, raw::list(gateway, "/spec/listeners"), grants) {
        listeners.push(read.listener);
        doors.push(read.door);
        verdicts.push(read.verdict);
    }
    judge_listeners(&listeners, &mut verdicts);
    let accepted = if verdicts.iter().any(|listener| listener.accepted.is_yes()) {
        Verdict::Yes
    } else {
        Verdict::no(Reason::UnsupportedValue, "none of its listeners can be used")
    };
    let usable = listeners.iter().zip(&verdicts).filter(|(_, v)| v.accepted.is_yes());
    let global = accepted.is_yes().then(|| GlobalGateway {
        name: name.clone(),
        created_at: raw::created_at(gateway),
        spec: Arc::new(gateway.get("spec").cloned().unwrap_or_default()),
        listeners: usable.map(|(listener, _)| listener.clone()).collect(),
    });
    let generation = raw::generation(gateway);
    let verdict = GatewayVerdict {
        generation,
        accepted,
        listeners: verdicts,
        attached_sets: 0,
        client_certificate: client_certificate_fault(name, gateway, grants),
        lets_invalid_clients_in: lets_invalid_clients_in(gateway),
    };
    HubGateway { verdict, doors, listeners, global }
}

/// Members' Gateways show Fairlead's certificate to the doors of others, and a Gateway has one only.
fn client_certificate_fault(
    name: &NsName,
    gateway: &Json,
    grants: &Grants,
) -> Option<CertificateFault> {
    let reference = gateway.pointer("/spec/tls/backend/clientCertificateRef")?;
    let certificate = raw::field(reference, "name").unwrap_or_default();
    let namespace = raw::field(reference, "namespace").unwrap_or(&name.namespace);
    let to = NsName::new(namespace, certificate);
    if !grants.permits_from("Gateway", &name.namespace, "", "Secret", &to) {
        return Some(CertificateFault::NotPermitted(format!(
            "Secret {to} is in another namespace, which grants nothing; nor would it be used"
        )));
    }
    Some(CertificateFault::Invalid(format!(
        "Secret {to} is not used: members' Gateways show the certificate of their own door instead"
    )))
}

fn lets_invalid_clients_in(gateway: &Json) -> bool {
    let is_insecure = |validation: Option<&Json>| {
        validation.and_then(|v| raw::field(v, "mode")) == Some("AllowInsecureFallback")
    };
    let ports = raw::list(gateway, "/spec/tls/frontend/perPort");
    is_insecure(gateway.pointer("/spec/tls/frontend/default/validation"))
        || ports.iter().any(|port| is_insecure(port.pointer("/tls/validation")))
}

/// Finds HTTPS listeners of one port with hostnames in common: a client's connection that one of them took
/// may carry requests for the other (GEP-3567).
pub(super) fn judge_overlaps(gateway: &mut HubGateway) {
    let doors = &gateway.doors;
    let overlap = |at: usize| {
        let own = doors.get(at).filter(|door| door.is_https)?;
        doors.iter().enumerate().position(|(other, door)| {
            other != at && door.is_https && door.port == own.port && {
                let hosts: Vec<&str> = door.hostname.as_deref().into_iter().collect();
                hostname::intersects(own.hostname.as_deref(), &hosts)
            }
        })
    };
    let found: Vec<Option<usize>> = (0..doors.len()).map(overlap).collect();
    let names: Vec<String> = gateway.verdict.listeners.iter().map(|l| l.name.clone()).collect();
    for (listener, other) in gateway.verdict.listeners.iter_mut().zip(found) {
        let usable = listener.accepted.is_yes();
        listener.overlaps = other.filter(|_| usable).and_then(|other| names.get(other)).cloned();
    }
}

/// Kinds that a protocol carries.
fn kinds_of(protocol: &str, is_passthrough: bool) -> &'static [RouteKind] {
    match protocol {
        "HTTP" | "HTTPS" => &[RouteKind::HTTPRoute, RouteKind::GRPCRoute],
        // What stays encrypted can be told apart by its server name alone.
        "TLS" if is_passthrough => &[RouteKind::TLSRoute],
        "TLS" => &[RouteKind::TLSRoute, RouteKind::TCPRoute],
        "TCP" => &[RouteKind::TCPRoute],
        "UDP" => &[RouteKind::UDPRoute],
        _ => &[],
    }
}

/// Kinds that may attach, and whether some of those named may not.
fn kinds(protocol: &str, listener: &Json) -> (Vec<RouteKind>, bool) {
    let possible = kinds_of(protocol, is_passthrough(listener));
    let named = raw::list(listener, "/allowedRoutes/kinds");
    if named.is_empty() {
        return (possible.to_vec(), false);
    }
    let read = |entry: &Json| {
        let group = entry.get("group").and_then(Json::as_str).unwrap_or(keys::GATEWAY_GROUP);
        let kind = raw::field(entry, "kind").filter(|_| group == keys::GATEWAY_GROUP)?;
        possible.iter().copied().find(|known| known.as_str() == kind)
    };
    let read: Vec<Option<RouteKind>> = named.iter().map(read).collect();
    let kinds: BTreeSet<RouteKind> = read.iter().flatten().copied().collect();
    (kinds.into_iter().collect(), read.contains(&None))
}

fn is_passthrough(listener: &Json) -> bool {
    raw::text(listener, "/tls/mode") == Some("Passthrough")
}

/// Whether its certificates can be there at all. Whether they are is the members' business.
fn certificate_fault(
    protocol: &str,
    listener: &Json,
    owner: &Owner<'_>,
    grants: &Grants,
) -> Option<CertificateFault> {
    let namespace = &*owner.name.namespace;
    if !matches!(protocol, "HTTPS" | "TLS") || is_passthrough(listener) {
        return None;
    }
    let references = raw::list(listener, "/tls/certificateRefs");
    let has_options =
        listener.pointer("/tls/options").and_then(Json::as_object).is_some_and(|o| !o.is_empty());
    if references.is_empty() && !has_options {
        return Some(CertificateFault::Invalid("tls.certificateRefs names no Secret".to_owned()));
    }
    references.iter().find_map(|reference| {
        let text = |field: &str| reference.get(field).and_then(Json::as_str);
        let (group, kind) = (text("group").unwrap_or_default(), text("kind").unwrap_or("Secret"));
        let Some(name) = raw::field(reference, "name") else {
            return Some(CertificateFault::Invalid("a certificateRef has no name".to_owned()));
        };
        if (group, kind) != ("", "Secret") {
            let kind = fairlead_model::id::printable(kind);
            return Some(CertificateFault::Invalid(format!("{kind} {name} is no Secret")));
        }
        let to = NsName::new(raw::field(reference, "namespace").unwrap_or(namespace), name);
        let permitted = grants.permits_from(owner.kind, namespace, group, kind, &to);
        (!permitted).then(|| {
            CertificateFault::NotPermitted(format!(
                "Secret {to} is in another namespace; a ReferenceGrant there must name {}s of \
                 namespace {namespace}",
                owner.kind
            ))
        })
    })
}

fn namespaces(listener: &Json) -> Namespaces {
    match listener.pointer("/allowedRoutes/namespaces") {
        None => Namespaces::Same,
        Some(written) => namespaces_of(written, Namespaces::Same),
    }
}

/// From where a `namespaces` lets somebody come.
pub(super) fn namespaces_of(written: &Json, default: Namespaces) -> Namespaces {
    match written.get("from") {
        None | Some(Json::Null) => default,
        Some(from) => match from.as_str() {
            Some("All") => Namespaces::All,
            Some("Same") => Namespaces::Same,
            Some("Selector") => written
                .get("selector")
                .and_then(spread::ingest_selector)
                .map_or(Namespaces::Nobody, Namespaces::Selected),
            _ => Namespaces::Nobody,
        },
    }
}

/// Conflicts refuse every listener that takes part: the Gateway API lets nobody pick a winner.
fn judge_listeners(listeners: &[Listener], verdicts: &mut [ListenerVerdict]) {
    for (at, listener) in listeners.iter().enumerate() {
        let others = listeners.iter().enumerate().filter(|(other, _)| *other != at);
        judge_listener(listener, others.map(|(_, other)| other), &mut verdicts[at]);
    }
}

/// Judges one listener beside others.
pub(super) fn judge_listener<'a>(
    listener: &Listener,
    others: impl Iterator<Item = &'a Listener>,
    verdict: &mut ListenerVerdict,
) {
    let conflict = others.filter_map(|other| conflict(listener, other)).min_by_key(|c| match c {
        Conflict::Protocol => 0,
        Conflict::Hostname => 1,
    });
    verdict.conflict = conflict;
    if kinds_of(&listener.protocol, false).is_empty() {
        let protocol = fairlead_model::id::printable(&listener.protocol);
        verdict.accepted = Verdict::no(
            Reason::UnsupportedProtocol,
            format!("protocol {protocol:?} is not one of HTTP, HTTPS, TLS, TCP, UDP"),
        );
    } else if let Some(conflict) = conflict {
        let what = match conflict {
            Conflict::Protocol => "of another protocol",
            Conflict::Hostname => "with the same hostname",
        };
        verdict.accepted = Verdict::no(
            Reason::Conflicted,
            format!("port {} has another listener {what}", listener.port),
        );
    }
}

fn conflict(one: &Listener, two: &Listener) -> Option<Conflict> {
    if one.port != two.port || (one.protocol == "UDP") != (two.protocol == "UDP") {
        return None;
    }
    // HTTPS and TLS both tell requests apart by SNI and may share a port.
    let layer = |protocol: &str| match protocol {
        "HTTPS" | "TLS" => "TLS".to_owned(),
        other => other.to_owned(),
    };
    if layer(&one.protocol) != layer(&two.protocol) {
        return Some(Conflict::Protocol);
    }
    let hostname =
        |listener: &Listener| listener.hostname.as_ref().map(|name| name.to_ascii_lowercase());
    (hostname(one) == hostname(two)).then_some(Conflict::Hostname)
}
