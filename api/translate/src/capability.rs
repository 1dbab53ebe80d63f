//! Capabilities: what a request must carry to pass the header door to one service.
//!
//! A capability is an HMAC with a key of the hub over who may call what where. It is unguessable, so a
//! route author of another namespace cannot reach a service that was not granted. Keys come in epochs:
//! doors take the newest three, routes use the one in the middle (the only one, the older of two). So a new
//! key is known everywhere before anybody uses it, and the one before it is still taken while routes
//! change: rotation needs no moment at which everybody changes together.

use std::collections::BTreeMap;
use std::fmt;

use fairlead_model::{ClusterUid, NsName, ServicePort};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::names::{hash, hex};

/// Newest epochs that doors accept.
pub const EPOCHS_ACCEPTED: usize = 3;

/// Port of the agent's readiness, in its Service.
pub const READINESS_PORT: ServicePort = 8081;

const SNI_LABEL_LEN: usize = 40;

/// The hub's keys for capabilities, by epoch.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CapabilityKeys {
    /// 32 random bytes each.
    pub epochs: BTreeMap<u32, [u8; 32]>,
}

/// Epochs only: a key in a log would open every door.
impl fmt::Debug for CapabilityKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CapabilityKeys").field("epochs", &self.epochs.keys()).finish()
    }
}

impl CapabilityKeys {
    /// The epoch that routes use: the second newest, which doors know already. None without a key.
    pub fn current(&self) -> Option<u32> {
        let mut newest = self.epochs.keys().rev();
        let only = newest.next();
        newest.next().or(only).copied()
    }

    /// The newest epoch. None without a key.
    pub fn newest(&self) -> Option<u32> {
        self.epochs.keys().next_back().copied()
    }

    /// Epochs that doors accept, newest first.
    pub fn accepted(&self) -> impl Iterator<Item = u32> + '_ {
        self.epochs.keys().rev().take(EPOCHS_ACCEPTED).copied()
    }
}

/// The capability to reach a service's port in a cluster from the routes of a namespace, 64 lower-case
/// hexadecimal digits. None when there is no key of that epoch.
pub fn capability(
    keys: &CapabilityKeys,
    epoch: u32,
    uid: &ClusterUid,
    from_namespace: &str,
    service: &NsName,
    port: ServicePort,
) -> Option<String> {
    digest(keys, epoch, b"fairlead capability 1", (uid, from_namespace, service, port))
}

/// The first label of the server name by which the same is reached where there are no headers: as
/// unguessable, and of no use as a capability. 40 lower-case hexadecimal digits: a label has at most 63
/// characters, and 160 bits are more than anybody can try.
pub fn sni_label(
    keys: &CapabilityKeys,
    epoch: u32,
    uid: &ClusterUid,
    from_namespace: &str,
    service: &NsName,
    port: ServicePort,
) -> Option<String> {
    let mut label = digest(keys, epoch, b"fairlead sni 1", (uid, from_namespace, service, port))?;
    label.truncate(SNI_LABEL_LEN);
    Some(label)
}

fn digest(
    keys: &CapabilityKeys,
    epoch: u32,
    purpose: &[u8],
    (uid, from_namespace, service, port): (&ClusterUid, &str, &NsName, ServicePort),
) -> Option<String> {
    let key = keys.epochs.get(&epoch)?;
    let mut mac =
        <Hmac<Sha256> as hmac::Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
    // Each field with its length, so that no two sets of fields run together.
    let fields: [&[u8]; 7] = [
        purpose,
        &epoch.to_be_bytes(),
        uid.as_str().as_bytes(),
        from_namespace.as_bytes(),
        service.namespace.as_bytes(),
        service.name.as_bytes(),
        &port.to_be_bytes(),
    ];
    for field in fields {
        mac.update(&(field.len() as u64).to_be_bytes());
        mac.update(field);
    }
    Some(hex(&mac.finalize().into_bytes()))
}

/// The capability to read the readiness of a cluster's agent, given to the agents of its peers alone: no
/// route has it, so neither a client nor a route's author gets there. No namespace has an empty name, so
/// that no route's capability is the same.
pub fn readiness_capability(keys: &CapabilityKeys, epoch: u32, uid: &ClusterUid) -> Option<String> {
    let agent = NsName::new(fairlead_crds::keys::NAMESPACE, fairlead_crds::keys::AGENT);
    capability(keys, epoch, uid, "", &agent, READINESS_PORT)
}

/// What stands for a capability where people can read it: plans, history, logs.
pub fn capability_id(capability: &str) -> String {
    hash(capability)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn keys() -> CapabilityKeys {
        CapabilityKeys { epochs: [(1, [1; 32]), (2, [2; 32]), (3, [3; 32])].into() }
    }

    fn of(epoch: u32, uid: &str, from: &str, service: &str, port: u16) -> Option<String> {
        let uid = ClusterUid::new(uid).unwrap();
        capability(&keys(), epoch, &uid, from, &service.parse().unwrap(), port)
    }

    #[test]
    fn every_field_counts() {
        let base = of(1, "u", "shop", "shop/cart", 80).unwrap();
        assert_eq!(base.len(), 64);
        for other in [
            of(2, "u", "shop", "shop/cart", 80),
            of(1, "v", "shop", "shop/cart", 80),
            of(1, "u", "bank", "shop/cart", 80),
            of(1, "u", "shop", "bank/cart", 80),
            of(1, "u", "shop", "shop/card", 80),
            of(1, "u", "shop", "shop/cart", 81),
            // The same text, cut elsewhere.
            of(1, "us", "hop", "shop/cart", 80),
        ] {
            assert_ne!(other.unwrap(), base);
        }
    }

    #[test]
    fn server_names_are_labels_and_tell_nothing_of_capabilities() {
        let uid = ClusterUid::new("u").unwrap();
        let of = |from: &str, port| {
            sni_label(&keys(), 2, &uid, from, &NsName::new("shop", "db"), port).unwrap()
        };
        let label = of("shop", 5432);
        assert!(fairlead_model::id::is_label(&label, 63) && label.len() == SNI_LABEL_LEN);
        assert_ne!(label, of("bank", 5432));
        assert_ne!(label, of("shop", 5433));
        let capability = self::of(2, "u", "shop", "shop/db", 5432).unwrap();
        assert!(!capability.starts_with(&label));
    }

    #[test]
    fn doors_accept_the_newest_three_epochs() {
        assert_eq!(keys().accepted().collect::<Vec<_>>(), [3, 2, 1]);
        assert_eq!(of(9, "u", "shop", "shop/cart", 80), None);
    }

    /// As a rotation goes, one key after the other: doors of a step before and after take what routes of
    /// this step send.
    #[test]
    fn no_step_of_a_rotation_needs_two_to_change_together() {
        let step = |newest: u32| CapabilityKeys {
            epochs: (1..=newest).map(|epoch| (epoch, [1; 32])).collect(),
        };
        for newest in 1..6 {
            let current = step(newest).current().unwrap();
            for doors in [newest - 1, newest, newest + 1].into_iter().filter(|doors| *doors > 0) {
                assert!(step(doors).accepted().any(|epoch| epoch == current), "{newest} {doors}");
            }
        }
        assert_eq!(
            (step(1).current(), step(2).current(), step(3).current()),
            (Some(1), Some(1), Some(2))
        );
        assert_eq!(CapabilityKeys::default().current(), None);
    }

    #[test]
    fn nobody_but_agents_has_the_capability_of_readiness() {
        let uid = ClusterUid::new("u").unwrap();
        let readiness = readiness_capability(&keys(), 1, &uid).unwrap();
        let agent = "fairlead-system/fairlead-agent";
        for namespace in ["fairlead-system", "shop"] {
            assert_ne!(of(1, "u", namespace, agent, READINESS_PORT).unwrap(), readiness);
        }
        assert_ne!(
            readiness_capability(&keys(), 1, &ClusterUid::new("v").unwrap()),
            Some(readiness)
        );
    }

    #[test]
    fn keys_are_not_printed() {
        assert_eq!(format!("{:?}", keys()), "CapabilityKeys { epochs: [1, 2, 3] }");
    }
}
