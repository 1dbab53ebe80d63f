//! Which routes attach to which listeners, by the rules of the Gateway API.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds::keys;
use fairlead_model::policy::ParentRef;
use fairlead_model::{Json, NsName, Reason, RouteKey, RouteKind};

use super::gateway::{Admission, HubGateway};
use super::hostname;
use super::verdict::{ListenerSetVerdict, ListenerVerdict, ParentVerdict, Verdict};
use crate::{names, raw};

/// Most parents of a route, as the Gateway API says.
const PARENTS_MAX: usize = 32;

/// What a route attaches to.
#[derive(Debug, Default)]
pub(super) struct Attachment {
    /// Parents that are Gateways of ours.
    pub(super) verdicts: Vec<ParentVerdict>,
    /// Those that take the route.
    pub(super) accepted: Vec<ParentRef>,
    /// Listeners that take the route, by position.
    pub(super) listeners: BTreeSet<(NsName, usize)>,
}

/// Attaches a route to Gateways of ours.
pub(super) fn attach(
    key: &RouteKey,
    route: &Json,
    namespace_labels: &BTreeMap<String, String>,
    gateways: &BTreeMap<NsName, HubGateway>,
    sets: &BTreeMap<NsName, ListenerSetVerdict>,
) -> Attachment {
    let mut attachment = Attachment::default();
    if raw::is_deleting(route) {
        return attachment;
    }
    for written in raw::list(route, "/spec/parentRefs").iter().take(PARENTS_MAX) {
        let Some(parent) = Parent::read(key, written, sets) else { continue };
        let Some(gateway) = gateways.get(&parent.gateway) else { continue };
        let asked = Asked { key, route, namespace_labels, parent: &parent };
        let accepted = match section(written) {
            Ok((section, port)) => {
                let found = asked.find_listeners(gateway, section, port);
                found.map(|listeners| (listeners, section.map(str::to_owned), port))
            }
            Err(verdict) => Err(verdict),
        };
        let name = parent.gateway.clone();
        let verdict = match accepted {
            Ok((listeners, section, port)) => {
                let parents = parent.refs(gateway, &listeners, section, port);
                attachment.accepted.extend(parents);
                attachment.listeners.extend(listeners.into_iter().map(|at| (name.clone(), at)));
                Verdict::Yes
            }
            Err(verdict) => verdict,
        };
        attachment.verdicts.push(ParentVerdict {
            parent_ref: written.clone(),
            gateway: name,
            accepted: verdict,
        });
    }
    attachment
}

/// What a parentRef names.
struct Parent {
    gateway: NsName,
    /// A ListenerSet of that Gateway.
    set: Option<NsName>,
}

impl Parent {
    /// None when it names nothing of ours.
    fn read(
        key: &RouteKey,
        written: &Json,
        sets: &BTreeMap<NsName, ListenerSetVerdict>,
    ) -> Option<Self> {
        let text = |name: &str| written.get(name).and_then(Json::as_str);
        if text("group").unwrap_or(keys::GATEWAY_GROUP) != keys::GATEWAY_GROUP {
            return None;
        }
        let namespace = text("namespace").unwrap_or(&key.name.namespace);
        let name = NsName::new(namespace, raw::field(written, "name")?);
        match text("kind").unwrap_or("Gateway") {
            "Gateway" => Some(Self { gateway: name, set: None }),
            "ListenerSet" => {
                Some(Self { gateway: sets.get(&name)?.gateway.clone(), set: Some(name) })
            }
            _ => None,
        }
    }

    /// Where members attach the route. Their Gateway has the listeners of all sets, so that who meant
    /// some of them must name each.
    fn refs(
        &self,
        gateway: &HubGateway,
        listeners: &[usize],
        section: Option<String>,
        port: Option<u16>,
    ) -> Vec<ParentRef> {
        let has_sets = gateway.doors.iter().any(|door| door.set.is_some());
        if !has_sets || (section.is_some() && self.set.is_none()) {
            return vec![ParentRef { gateway: self.gateway.clone(), section, port }];
        }
        let named = listeners.iter().filter_map(|at| gateway.verdict.listeners.get(*at));
        let reference = |listener: &ListenerVerdict| {
            let section = match &self.set {
                Some(set) => names::set_listener(set, &listener.name),
                None => listener.name.clone(),
            };
            ParentRef { gateway: self.gateway.clone(), section: Some(section), port: None }
        };
        named.take(PARENTS_MAX).map(reference).collect()
    }
}

impl std::fmt::Display for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.set {
            Some(set) => write!(f, "ListenerSet {set}"),
            None => write!(f, "Gateway {}", self.gateway),
        }
    }
}

/// Section and port. What cannot be read must not mean "any".
fn section(written: &Json) -> Result<(Option<&str>, Option<u16>), Verdict> {
    let unreadable = |name: &str| {
        Verdict::no(Reason::NoMatchingParent, format!("{name} of the parentRef cannot be read"))
    };
    let section = match written.get("sectionName") {
        None | Some(Json::Null) => None,
        Some(value) => Some(value.as_str().ok_or_else(|| unreadable("sectionName"))?),
    };
    let port = match written.get("port") {
        None | Some(Json::Null) => None,
        Some(_) => Some(raw::port(written, "port").ok_or_else(|| unreadable("port"))?),
    };
    Ok((section, port))
}

struct Asked<'a> {
    key: &'a RouteKey,
    route: &'a Json,
    namespace_labels: &'a BTreeMap<String, String>,
    parent: &'a Parent,
}

impl Asked<'_> {
    /// Positions of the listeners that take the route; each step that leaves none says so.
    fn find_listeners(
        &self,
        gateway: &HubGateway,
        section: Option<&str>,
        port: Option<u16>,
    ) -> Result<Vec<usize>, Verdict> {
        let pairs: Vec<(usize, &ListenerVerdict, &Admission)> = gateway
            .verdict
            .listeners
            .iter()
            .zip(&gateway.doors)
            .enumerate()
            .map(|(at, (verdict, door))| (at, verdict, door))
            .collect();
        let named = narrow(
            pairs,
            |listener, door| {
                door.set == self.parent.set
                    && section.is_none_or(|section| section == listener.name)
                    && port.is_none_or(|port| port == door.port)
            },
            || (Reason::NoMatchingParent, format!("{} has no such listener", self.parent)),
        )?;
        let allowed = narrow(
            named,
            |listener, door| listener.kinds.contains(&self.key.kind) && self.may_come(door),
            || {
                let RouteKey { kind, name } = self.key;
                let message = format!("no listener takes a {kind} of namespace {}", name.namespace);
                (Reason::NotAllowedByListeners, message)
            },
        )?;
        let hostnames = self.hostnames()?;
        let matching = narrow(
            allowed,
            |_, door| hostname::intersects(door.hostname.as_deref(), &hostnames),
            || {
                let message = "no hostname of the route fits one of a listener".to_owned();
                (Reason::NoMatchingListenerHostname, message)
            },
        )?;
        let usable = narrow(
            matching,
            |listener, _| listener.accepted.is_yes(),
            || {
                (
                    Reason::NoMatchingParent,
                    "the listener that fits is not accepted itself".to_owned(),
                )
            },
        )?;
        Ok(usable.into_iter().map(|(at, _, _)| at).collect())
    }

    fn may_come(&self, door: &Admission) -> bool {
        let namespace = &self.key.name.namespace;
        door.namespaces.admit(&door.namespace, namespace, self.namespace_labels)
    }

    /// Hostnames of the route; empty = all. Connections without names have none.
    fn hostnames(&self) -> Result<Vec<&str>, Verdict> {
        match self.key.kind {
            RouteKind::TCPRoute | RouteKind::UDPRoute => return Ok(Vec::new()),
            RouteKind::HTTPRoute | RouteKind::GRPCRoute | RouteKind::TLSRoute => {}
        }
        let unreadable = || Verdict::no(Reason::UnsupportedValue, "spec.hostnames cannot be read");
        match self.route.pointer("/spec/hostnames") {
            None | Some(Json::Null) => Ok(Vec::new()),
            Some(Json::Array(names)) => {
                names.iter().map(|name| name.as_str().ok_or_else(unreadable)).collect()
            }
            Some(_) => Err(unreadable()),
        }
    }
}

type Pair<'a> = (usize, &'a ListenerVerdict, &'a Admission);

fn narrow<'a>(
    pairs: Vec<Pair<'a>>,
    fits: impl Fn(&ListenerVerdict, &Admission) -> bool,
    why: impl Fn() -> (Reason, String),
) -> Result<Vec<Pair<'a>>, Verdict> {
    let left: Vec<Pair<'a>> =
        pairs.into_iter().filter(|(_, listener, door)| fits(listener, door)).collect();
    if left.is_empty() {
        let (reason, message) = why();
        return Err(Verdict::no(reason, message));
    }
    Ok(left)
}
