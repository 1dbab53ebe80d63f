//! Which crossing CAs of other members this one believes: the first it saw, and whoever they endorse.
//!
//! The hub only passes CAs on, as members report them. Whoever takes an agent's identity could report
//! another CA and another door in that member's name; no member that saw the real one follows. Pure: a
//! bundle comes in and goes out with what is not to be believed replaced by what is. Never refuses a
//! bundle: the one member that is doubted keeps the CA of before.
//!
//! A pin belongs to a cluster and to its registration at the hub: one that left and joined again, by a
//! person's token, begins anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::pki;
use crate::tls;
use fairlead_agent_core::own::exception;
use fairlead_crds::keys;
use fairlead_model::bundle::{Bundle, CrossingCa};
use fairlead_model::pin::CaPin;
use fairlead_model::session::Exception;
use fairlead_model::{ClusterUid, Json, MemberId, ObjectId, Reason};

/// Most pins that are kept: those of members that no bundle names any more go first.
pub const PINS_MAX: usize = 500;

/// What is believed of each cluster.
pub type Pins = BTreeMap<ClusterUid, CaPin>;

/// What a bundle is held against.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Beliefs {
    /// What was seen before.
    pub pins: Pins,
    /// Hashes that this member's admin confirmed.
    pub confirmed: BTreeSet<String>,
    /// Which cluster we are, and our own CA, PEM; empty while it is not known.
    pub own: Option<(ClusterUid, String)>,
}

/// A bundle without what is not to be believed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Admitted {
    /// It.
    pub bundle: Bundle,
    /// Objects that are not as the hub wrote them.
    pub doubts: BTreeMap<ObjectId, Exception>,
    /// What is believed from now on.
    pub pins: Pins,
}

/// Holds a bundle against what is believed. A bundle of a hub that does not say whose a CA is stays as it is.
pub fn admit(mut bundle: Bundle, beliefs: &Beliefs) -> Admitted {
    let mut pins = beliefs.pins.clone();
    let mut changes = Vec::new();
    for (member, shown) in &bundle.cas {
        let certificates = pki::split(&shown.ca_pem);
        let own = beliefs.own.as_ref().filter(|(uid, _)| *uid == shown.uid);
        let pin = match own {
            // Nothing to believe, and nothing to doubt.
            Some((_, own)) if own.is_empty() => continue,
            None if certificates.is_empty() => continue,
            Some((_, own)) => own_pin(member, shown, own),
            None => {
                let before = pins.get(&shown.uid);
                judge(member, shown, &certificates, before, &beliefs.confirmed)
            }
        };
        let (believed, refused) = (pki::split(&pin.ca), pin.refused.clone());
        pins.insert(shown.uid.clone(), pin);
        if believed != certificates {
            changes.push(Change { member: member.clone(), shown: certificates, believed, refused });
        }
    }
    let doubts = if changes.is_empty() { BTreeMap::new() } else { replace(&mut bundle, &changes) };
    bound(&mut pins, &bundle);
    Admitted { bundle, doubts, pins }
}

/// For people to see beside the others.
fn own_pin(member: &MemberId, shown: &CrossingCa, own: &str) -> CaPin {
    CaPin {
        member: member.to_string(),
        membership: shown.membership.clone(),
        ca: own.to_owned(),
        believed: pki::split(own).iter().filter_map(|pem| hash(pem)).collect(),
        refused: Vec::new(),
        own: true,
    }
}

/// What becomes of one member's pin.
fn judge(
    member: &MemberId,
    shown: &CrossingCa,
    certificates: &[String],
    before: Option<&CaPin>,
    confirmed: &BTreeSet<String>,
) -> CaPin {
    let before = before.filter(|pin| pin.membership == shown.membership);
    let good: Vec<&str> = match before {
        None => certificates.iter().map(String::as_str).collect(),
        Some(pin) => {
            let vouched = pki::vouched(&pki::split(&pin.ca), &shown.endorsements, certificates);
            let is_good = |pem: &&String| {
                vouched.contains(&pem.as_str()) || hash(pem).is_some_and(|h| confirmed.contains(&h))
            };
            certificates.iter().filter(is_good).map(String::as_str).collect()
        }
    };
    let refused = certificates.iter().filter(|pem| !good.contains(&pem.as_str()));
    let refused = refused.filter_map(|pem| hash(pem)).collect();
    let (ca, believed) = match before.filter(|_| good.is_empty()) {
        Some(pin) => (pin.ca.clone(), pin.believed.clone()),
        None => (good.concat(), good.iter().filter_map(|pem| hash(pem)).collect()),
    };
    let membership = shown.membership.clone();
    CaPin { member: member.to_string(), membership, ca, believed, refused, own: false }
}

fn hash(pem: &str) -> Option<String> {
    let all = tls::certificates(pem, "a CA").ok()?;
    all.first().map(tls::hash_of)
}

/// A member whose CA is not to be as the hub says.
struct Change {
    member: MemberId,
    shown: Vec<String>,
    believed: Vec<String>,
    /// Hashes; empty where we know better without doubting anybody.
    refused: Vec<String>,
}

impl Change {
    fn doubt(&self) -> Option<Exception> {
        let refused = self.refused.first()?;
        let text = format!(
            "member {0} shows the crossing CA {refused}, which the one before did not sign; the one before \
             stays. If {0}'s admin made it: fairlead trust {0} --ca {refused}",
            self.member
        );
        Some(exception(Reason::UntrustedCa, text))
    }
}

/// Puts what is believed in place of what is not, wherever it stands.
fn replace(bundle: &mut Bundle, changes: &[Change]) -> BTreeMap<ObjectId, Exception> {
    let mut doubts = BTreeMap::new();
    for change in changes {
        if let Some(peer) = bundle.peers.get_mut(&change.member) {
            peer.ca_pem = change.believed.concat();
        }
    }
    for (id, object) in &mut bundle.objects {
        if &*id.kind != "ConfigMap" {
            continue;
        }
        let Some(Json::String(text)) = object.content.pointer_mut("/data/ca.crt") else { continue };
        let is_callers = &*id.name == keys::CONFIG_MAP_EAST_WEST_CALLERS;
        let concerned = changes.iter().filter(|change| {
            is_callers || *id.name == *keys::member_object(change.member.as_str())
        });
        for change in concerned {
            if let Some(next) = replaced(text, change) {
                *text = next;
                doubts.extend(change.doubt().map(|doubt| (id.clone(), doubt)));
            }
        }
    }
    doubts
}

/// The text with this change; none where the member's CA does not stand in it.
fn replaced(text: &str, change: &Change) -> Option<String> {
    let blocks = pki::split(text);
    if !blocks.iter().any(|block| change.shown.contains(block)) {
        return None;
    }
    let others = blocks.iter().filter(|block| !change.shown.contains(block));
    Some(others.chain(&change.believed).cloned().collect())
}

fn bound(pins: &mut Pins, bundle: &Bundle) {
    if pins.len() <= PINS_MAX {
        return;
    }
    let named: BTreeSet<&ClusterUid> = bundle.cas.values().map(|ca| &ca.uid).collect();
    let rest: Vec<ClusterUid> = pins.keys().filter(|uid| !named.contains(uid)).cloned().collect();
    let excess = pins.len() - PINS_MAX;
    for uid in rest.into_iter().take(excess) {
        pins.remove(&uid);
    }
}

#[cfg(test)]
#[path = "pins_test.rs"]
mod tests;
