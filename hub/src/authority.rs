//! Who signs and who is believed in the control plane: its CA, and the next one while it changes.
//!
//! Owns which of the two does what. While there are two, the hub shows a certificate of the one that
//! every member knows, and signs members' certificates with the other; it believes both. Never writes
//! a Secret: what it holds is what the Secret said last ([`crate::rotation`]).

use std::sync::Arc;

use fairlead_model::ledger::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::pki::Ca;

/// The CAs at one time.
pub struct Authorities {
    current: Ca,
    next: Option<Ca>,
}

impl Authorities {
    /// The CA that every member knows, and the one that comes after it, if it changes.
    pub fn new(current: Ca, next: Option<Ca>) -> Self {
        Self { current, next }
    }

    /// Signs the hub's own certificate; join lines carry its hash.
    pub fn server(&self) -> &Ca {
        &self.current
    }

    /// Signs members' certificates.
    pub fn signer(&self) -> &Ca {
        self.next.as_ref().unwrap_or(&self.current)
    }

    /// Those whose certificates are believed.
    pub fn all(&self) -> impl Iterator<Item = &Ca> {
        std::iter::once(&self.current).chain(&self.next)
    }

    /// Their certificates, PEM: what members are to believe.
    pub fn bundle_pem(&self) -> String {
        self.all().map(Ca::certificate_pem).collect()
    }

    /// What a member that holds [`Self::bundle_pem`] says in its heartbeats.
    pub fn digest(&self) -> Digest {
        Sha256::digest(self.bundle_pem()).into()
    }
}

/// The CAs, which change while everything goes on.
pub struct Authority(watch::Sender<Arc<Authorities>>);

impl Authority {
    /// Starts with these.
    pub fn new(authorities: Authorities) -> Self {
        Self(watch::Sender::new(Arc::new(authorities)))
    }

    /// Those of now.
    pub fn now(&self) -> Arc<Authorities> {
        self.0.borrow().clone()
    }

    /// These from now on; nobody is woken when they are the same.
    pub fn set(&self, authorities: Authorities) {
        self.0.send_if_modified(|held| {
            let changed = held.bundle_pem() != authorities.bundle_pem();
            if changed {
                *held = Arc::new(authorities);
            }
            changed
        });
    }

    /// Those of now and every later ones.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Authorities>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::pki::make_ca;
    use fairlead_model::Millis;

    fn mk_ca() -> Ca {
        Ca::open(&make_ca(Millis(1_800_000_000_000)).unwrap()).unwrap()
    }

    #[test]
    fn with_two_the_known_one_serves_and_the_new_one_signs() {
        let (a, b) = (mk_ca(), mk_ca());
        let (hash_a, hash_b) = (a.hash(), b.hash());
        let two = Authorities::new(a, Some(b));
        assert_eq!((two.server().hash(), two.signer().hash()), (hash_a, hash_b.clone()));
        assert_eq!(two.all().count(), 2);
        let Authorities { next, .. } = two;
        let one = Authorities::new(next.unwrap(), None);
        assert_eq!((one.server().hash(), one.signer().hash()), (hash_b.clone(), hash_b));
    }

    #[test]
    fn only_other_certificates_wake_those_who_wait() {
        let pem = make_ca(Millis(1_800_000_000_000)).unwrap();
        let open = || Ca::open(&pem).unwrap();
        let authority = Authority::new(Authorities::new(open(), None));
        let mut seen = authority.subscribe();
        authority.set(Authorities::new(open(), None));
        assert!(!seen.has_changed().unwrap());
        authority.set(Authorities::new(open(), Some(mk_ca())));
        assert!(seen.has_changed().unwrap());
        assert_eq!(seen.borrow_and_update().digest(), authority.now().digest());
    }
}
