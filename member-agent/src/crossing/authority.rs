//! What Secret `fairlead-crossing-ca` holds, and what one step of a change makes of it.
//!
//! Pure but for the keys of a new CA. While the CA changes there are two: first the next one beside the
//! one that signs, then the one before beside the one that signs; as a text they are the same two, so
//! that nobody's plan changes in between. The key of the one before is gone as soon as it signs nothing.

use fairlead_model::snapshot::ENDORSEMENTS_MAX;
use fairlead_model::{ClusterUid, Millis};

use super::{data_of, leaf_of};
use crate::pki::{self, PkiError};
use crate::secret::Data;
use crate::tls::Leaf;

const NEXT_CERT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const PREVIOUS_CERT: &str = "previous.crt";
const ENDORSEMENTS: &str = "endorsements.crt";

/// The CAs of a member at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authority {
    /// Signs leafs.
    pub(super) signer: Leaf,
    /// Signs them from the next step on.
    next: Option<Leaf>,
    /// Signed them until the last step, PEM.
    previous: Option<String>,
    /// Why a later one is to be believed by who believes an earlier one, PEM each, oldest first.
    pub(super) endorsements: Vec<String>,
}

impl Authority {
    /// The first one.
    pub(super) fn new(uid: &ClusterUid, now: Millis) -> Result<Self, PkiError> {
        let signer = pki::make_ca(&common_name(uid), now)?;
        Ok(Self { signer, next: None, previous: None, endorsements: Vec::new() })
    }

    /// Reads the Secret; none when nothing can be signed with it.
    pub(super) fn of(data: &Data) -> Option<Self> {
        let is_ca = |ca: &Leaf| pki::is_signed_by(&ca.cert_pem, &ca.cert_pem);
        let signer = leaf_of(data).filter(is_ca)?;
        let text = |key: &str| data.get(key).cloned();
        let next = text(NEXT_CERT).zip(text(NEXT_KEY));
        let next = next.map(|(cert_pem, key_pem)| Leaf { cert_pem, key_pem }).filter(is_ca);
        let previous = text(PREVIOUS_CERT).filter(|pem| pki::is_signed_by(pem, pem));
        let endorsements = pki::split(&text(ENDORSEMENTS).unwrap_or_default());
        Some(Self { signer, next, previous, endorsements })
    }

    /// What the Secret is to hold.
    pub(super) fn data(&self) -> Data {
        let mut data = data_of(&self.signer, &self.signer);
        let mut put = |key: &str, text: String| data.insert(key.to_owned(), text);
        if let Some(next) = &self.next {
            put(NEXT_CERT, next.cert_pem.clone());
            put(NEXT_KEY, next.key_pem.clone());
        }
        if let Some(previous) = &self.previous {
            put(PREVIOUS_CERT, previous.clone());
        }
        if !self.endorsements.is_empty() {
            put(ENDORSEMENTS, self.endorsements.concat());
        }
        data
    }

    /// Those whose certificates others are to believe, PEM, oldest first.
    pub(super) fn text(&self) -> String {
        let next = self.next.as_ref().map(|next| &next.cert_pem);
        let all: Vec<&String> =
            self.previous.iter().chain([&self.signer.cert_pem]).chain(next).collect();
        match all.as_slice() {
            // As it was written.
            [one] => (*one).clone(),
            all => all.iter().map(|pem| format!("{}\n", pem.trim_end())).collect(),
        }
    }

    /// What it is after the step of this number, of [`fairlead_model::rotation::CROSSING_STEPS`].
    pub(super) fn step(&self, step: u32, uid: &ClusterUid, now: Millis) -> Result<Self, PkiError> {
        let mut after = self.clone();
        match (step, &self.next) {
            (1, _) => {
                let next = pki::make_ca(&common_name(uid), now)?;
                after.endorsements.push(pki::endorse(&self.signer, &next, now)?);
                let excess = after.endorsements.len().saturating_sub(ENDORSEMENTS_MAX);
                after.endorsements.drain(..excess);
                after.previous = None;
                after.next = Some(next);
            }
            (2, Some(next)) => {
                after.previous = Some(self.signer.cert_pem.clone());
                after.signer = next.clone();
                after.next = None;
            }
            // A Secret that somebody took the next one out of has nothing to change to.
            (2, None) => {}
            (_, _) => (after.next, after.previous) = (None, None),
        }
        Ok(after)
    }
}

fn common_name(uid: &ClusterUid) -> String {
    format!("fairlead crossing {uid}")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_800_000_000_000);

    fn uid() -> ClusterUid {
        ClusterUid::new("u-west").unwrap()
    }

    fn certificates(authority: &Authority) -> Vec<String> {
        pki::split(&authority.text())
    }

    #[test]
    fn a_change_is_beside_then_instead_then_alone() {
        let before = Authority::new(&uid(), NOW).unwrap();
        let step = |authority: &Authority, n| authority.step(n, &uid(), NOW).unwrap();
        let beside = step(&before, 1);
        let instead = step(&beside, 2);
        let alone = step(&instead, 3);
        assert_eq!(certificates(&before).len(), 1);
        assert_eq!(certificates(&beside).len(), 2);
        assert_eq!(beside.text(), instead.text(), "no plan changes with the leafs");
        assert_eq!(beside.signer, before.signer);
        assert_ne!(instead.signer, before.signer);
        assert_eq!(certificates(&alone), certificates(&beside)[1..]);
        let [old, new] = [certificates(&before), certificates(&alone)];
        assert_eq!(pki::vouched(&old, &alone.endorsements, &new), [new[0].as_str()]);
        let key = &before.signer.key_pem;
        assert!(!instead.data().values().any(|value| value.contains(key.trim())), "the old key");
    }

    #[test]
    fn the_secret_gives_back_what_it_was_given() {
        let mut authority = Authority::new(&uid(), NOW).unwrap();
        for step in [1, 2, 3, 1] {
            assert_eq!(Authority::of(&authority.data()), Some(authority.clone()), "before {step}");
            authority = authority.step(step, &uid(), NOW).unwrap();
        }
        assert_eq!(Authority::of(&Data::new()), None);
    }

    #[test]
    fn what_cannot_be_read_of_the_next_one_is_as_none() {
        let before = Authority::new(&uid(), NOW).unwrap();
        let beside = before.step(1, &uid(), NOW).unwrap();
        let mut data = beside.data();
        data.insert(NEXT_CERT.to_owned(), "x".to_owned());
        let read = Authority::of(&data).unwrap();
        assert_eq!((read.text(), read.next.is_none()), (before.text(), true));
        let stepped = read.step(2, &uid(), NOW).unwrap();
        assert_eq!(stepped.signer, before.signer);
    }

    #[test]
    fn endorsements_are_bounded_and_the_newest_stay() {
        let mut authority = Authority::new(&uid(), NOW).unwrap();
        for _ in 0..ENDORSEMENTS_MAX + 2 {
            for step in 1..=3 {
                authority = authority.step(step, &uid(), NOW).unwrap();
            }
        }
        assert_eq!(authority.endorsements.len(), ENDORSEMENTS_MAX);
        let new = certificates(&authority);
        let last = authority.endorsements.last().unwrap().clone();
        assert_eq!(pki::vouched(&[last], &[], &new), [new[0].as_str()]);
    }
}
