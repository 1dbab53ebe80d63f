//! Which Gateway of a member serves a global gateway, and to what a route attaches there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_model::plan::{GatewayPlan, LocalParent};
use fairlead_model::policy::{GlobalGateway, GlobalRoute, ParentRef};
use fairlead_model::snapshot::{GatewayRole, ListenerState, Snapshot};
use fairlead_model::{MemberId, Note, NsName, Reason};

use crate::Report;
use crate::fleet::{Fleet, Member};

const GATEWAY_KIND: &str = "gateway.networking.k8s.io/v1/Gateway";
/// Our own class: a Gateway of it is a global gateway, never lent.
const OWN_CLASS: &str = "fairlead";
const SUFFIX: &str = "-global";
/// Longest name of a global gateway that we can mirror: implementations put the name of a Gateway
/// into labels, which end at 63.
const NAME_LEN_MAX: usize = 63 - SUFFIX.len();

/// A Gateway of a member that serves a global gateway.
pub(crate) struct LocalGateway {
    pub(crate) name: NsName,
    pub(crate) plan: GatewayPlan,
    /// Listeners of a lent one; one that we make has those of the global gateway.
    listeners: Option<BTreeMap<String, ListenerState>>,
}

/// By member, by global gateway.
pub(crate) type LocalGateways = BTreeMap<MemberId, BTreeMap<NsName, LocalGateway>>;

/// Finds or makes the Gateways of every member.
pub(crate) fn assign(fleet: &Fleet<'_>, report: &mut Report) -> LocalGateways {
    let mut all = LocalGateways::new();
    for (id, member) in &fleet.members {
        let mut local = BTreeMap::new();
        for (name, gateway) in &fleet.policy.gateways {
            match assign_one(member, gateway) {
                Ok(found) => {
                    local.insert(name.clone(), found);
                }
                Err((reason, message)) => {
                    let note = Note::new(format!("member {id} Gateway {name}"), reason, message);
                    report
                        .gateways_refused
                        .entry(name.clone())
                        .or_default()
                        .insert(id.clone(), note);
                }
            }
        }
        all.insert(id.clone(), local);
    }
    all
}

type Refusal = (Reason, String);

fn assign_one(member: &Member<'_>, gateway: &GlobalGateway) -> Result<LocalGateway, Refusal> {
    let Some(snapshot) = &member.snapshot else {
        return Err((Reason::NoSnapshot, Reason::NoSnapshot.sentence().to_owned()));
    };
    if let Some(lent) = lent(snapshot, &gateway.name) {
        return Ok(lent);
    }
    let Some(class) = &member.spec.gateway_class else {
        let text = "it lends no Gateway (annotation fairlead.dev/global-gateway) and has no \
                    gatewayClassName to create one";
        return Err((Reason::NoGateway, text.to_owned()));
    };
    if !snapshot.cluster.kinds.contains(GATEWAY_KIND) {
        return Err((Reason::KindMissing, format!("{GATEWAY_KIND} is not served")));
    }
    check_namespace(snapshot, &gateway.name.namespace)?;
    if gateway.name.name.len() > NAME_LEN_MAX {
        let text = format!("its name has more than {NAME_LEN_MAX} characters, lend a Gateway");
        return Err((Reason::UnsupportedValue, text));
    }
    let name = format!("{}{SUFFIX}", gateway.name.name);
    Ok(LocalGateway {
        name: NsName::new(&gateway.name.namespace, &name),
        plan: GatewayPlan::Created { class: class.clone(), spec: Arc::clone(&gateway.spec) },
        listeners: None,
    })
}

/// The first lent one by name, when there are several.
fn lent(snapshot: &Snapshot, global: &NsName) -> Option<LocalGateway> {
    let is_lent = |role: &GatewayRole| matches!(role, GatewayRole::Lent(to) if to == global);
    let mut lent =
        snapshot.gateways.iter().filter(|(_, g)| is_lent(&g.role) && g.class != OWN_CLASS);
    let (name, state) = lent.next()?;
    Some(LocalGateway {
        name: name.clone(),
        plan: GatewayPlan::Lent { local: name.clone() },
        listeners: Some(state.listeners.clone()),
    })
}

/// Whether we may write into a namespace of the member.
pub(crate) fn check_namespace(snapshot: &Snapshot, namespace: &str) -> Result<(), Refusal> {
    let facts = &snapshot.cluster;
    if !snapshot.namespaces.contains(namespace) {
        return Err((Reason::NamespaceMissing, format!("namespace {namespace} does not exist")));
    }
    let allowed = facts.namespaces_allowed.as_ref().is_none_or(|all| all.contains(namespace));
    if !allowed || facts.namespaces_denied.contains(namespace) {
        let text = format!("the agent's configuration excludes namespace {namespace}");
        return Err((Reason::NamespaceNotAllowed, text));
    }
    Ok(())
}

/// To what a route attaches in a member, in the order of its spec, and what it does not and why.
pub(crate) fn parents(
    route: &GlobalRoute,
    local: &BTreeMap<NsName, LocalGateway>,
    refused: impl Fn(&NsName) -> Option<Note>,
) -> (Vec<LocalParent>, Vec<Refusal>) {
    let mut parents = Vec::new();
    let mut seen = BTreeSet::new();
    let mut refusals = Vec::new();
    for parent in &route.parents {
        let Some(gateway) = local.get(&parent.gateway) else {
            let (reason, text) = match refused(&parent.gateway) {
                Some(note) => (note.reason, note.message),
                None => (Reason::NoMatchingParent, "it is not accepted".to_owned()),
            };
            refusals.push((reason, format!("Gateway {}: {text}", parent.gateway)));
            continue;
        };
        if let Some(text) = listener_missing(gateway, parent) {
            refusals.push((Reason::ListenerMissing, text));
            continue;
        }
        let found = LocalParent {
            gateway: gateway.name.clone(),
            section: parent.section.clone(),
            port: parent.port,
        };
        if seen.insert(found.clone()) {
            parents.push(found);
        }
    }
    (parents, refusals)
}

fn listener_missing(gateway: &LocalGateway, parent: &ParentRef) -> Option<String> {
    let listeners = gateway.listeners.as_ref()?;
    let fits = |(name, listener): (&String, &ListenerState)| {
        parent.section.as_ref().is_none_or(|section| section == name)
            && parent.port.is_none_or(|port| port == listener.port)
    };
    if listeners.iter().any(fits) || (parent.section.is_none() && parent.port.is_none()) {
        return None;
    }
    let section = parent.section.as_ref().map(|s| format!(" named {s}")).unwrap_or_default();
    let port = parent.port.map(|p| format!(" on port {p}")).unwrap_or_default();
    Some(format!("lent Gateway {} has no listener{section}{port}", gateway.name))
}
