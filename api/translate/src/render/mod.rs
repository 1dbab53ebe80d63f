//! Plan → bundle: the objects that one member must hold, and what its agent needs to steer them.
//!
//! Owns how a [`MemberPlan`] looks as Kubernetes objects. Decides nothing: shares, targets and peers
//! are the plan's. Never writes ownerReferences (a member's garbage collector would delete the object),
//! never reads or writes a Secret's content.
//!
//! Fails never: what cannot be written is left out, and a note says so.
//!
//! ```text
//!  entry                                            target
//!  <route>-global ─▶ Service member-<id> ──mTLS──▶ Gateway fairlead-eastwest ─▶ <namespace>.<service> ─▶ Service
//!  (sets the header)  (slices, TLS policy, CA)      (callers' CAs)               (exact header, removed)
//! ```

mod door;
mod endpoint;
mod filter;
mod follow;
mod gateway;
mod grant;
mod peer;
mod route;

use fairlead_crds::keys;
use fairlead_model::bundle::{Bundle, BundleObject, Claim, Gate};
use fairlead_model::plan::MemberPlan;
use fairlead_model::{Json, Note, ObjectId, Reason};
use serde_json::json;

use crate::CapabilityKeys;

/// Version of the standard Gateway API kinds that we write.
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

/// The objects that a member must hold, without a number (the hub's session gives it).
///
/// Equal input gives an equal bundle, so that its digest tells whether anything is to be sent.
pub fn render(plan: &MemberPlan, keyring: &CapabilityKeys) -> (Bundle, Vec<Note>) {
    let mut draft = Draft::default();
    if keyring.current().is_none() && !(plan.peers.is_empty() && plan.door.is_none()) {
        draft.note("capability keys", Reason::CheckFailed, "there is no key: nothing can cross");
    }
    gateway::render_gateways(plan, &mut draft);
    route::render_routes(plan, keyring, &mut draft);
    follow::render_following(plan, &mut draft);
    peer::render_peers(plan, keyring, &mut draft);
    if let Some(door) = &plan.door {
        door::render_door(plan, door, keyring, &mut draft);
    }
    endpoint::render_endpoints(plan, &mut draft);
    draft.bundle.zones = plan.zones.as_ref().clone();
    (draft.bundle, draft.notes)
}

/// A bundle in the making.
#[derive(Default)]
struct Draft {
    bundle: Bundle,
    notes: Vec<Note>,
}

impl Draft {
    fn note(&mut self, subject: impl Into<String>, reason: Reason, message: impl Into<String>) {
        self.notes.push(Note::new(subject, reason, message));
    }

    /// Adds an object that is wholly ours.
    fn put(&mut self, content: Json) {
        self.put_as(content, Gate::Open, Claim::Whole);
    }

    fn put_as(&mut self, content: Json, gate: Gate, claim: Claim) -> Option<ObjectId> {
        let id = match ObjectId::of(&content) {
            Ok(id) => id,
            Err(error) => {
                self.note("rendered object", Reason::CheckFailed, error.to_string());
                return None;
            }
        };
        if self.bundle.objects.contains_key(&id) {
            // Two hub objects for one of ours; the first stays, whichever came first in the plan's order.
            self.note(
                id.for_people(),
                Reason::CheckFailed,
                "two objects of the plan have this name",
            );
            return None;
        }
        self.bundle.objects.insert(id.clone(), BundleObject { content, gate, claim });
        Some(id)
    }
}

/// Metadata of an object that is wholly ours.
fn metadata(namespace: &str, name: &str) -> Json {
    json!({
        "namespace": namespace,
        "name": name,
        "labels": {keys::MANAGED_BY: keys::FAIRLEAD, keys::PART_OF: keys::FAIRLEAD},
    })
}

/// Adds a label.
fn set_label(metadata: &mut Json, key: &str, value: &str) {
    metadata["labels"][key] = value.into();
}

/// Annotations of an object that mirrors one of the hub: what it mirrors, and that ExternalDNS's
/// gateway sources leave it alone (the records of global gateways are ours to publish).
fn mirror_annotations(mirror_of: &str) -> Json {
    json!({
        keys::MIRROR_OF: mirror_of,
        keys::EXTERNAL_DNS_CONTROLLER: keys::EXTERNAL_DNS_CONTROLLER_VALUE,
    })
}
