//! What a member says, held against what it may say.
//!
//! Owns the look at a snapshot before it counts: about itself a member may say anything, and gets what it
//! asked for, but its crossing CA goes into the doors of others, where one text that cannot be read would
//! shut out everybody. Never refuses a snapshot: what may not be said is left out, and a note says so.

use fairlead_model::ledger::Ledger;
use fairlead_model::snapshot::Snapshot;
use fairlead_model::{ClusterUid, Note, Reason};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use x509_parser::prelude::FromDer as _;

/// Largest certificate, PEM: RSA 4096 with long names fits. All callers share one ConfigMap.
const CA_BYTES_MAX: usize = 8 << 10;
/// Certificates of one member's CA: while it changes there is the next one, too.
const CAS_MAX: usize = 2;

/// The snapshot of a cluster's ledger, and notes on what was left out.
pub fn snapshot_of(uid: &ClusterUid, ledger: &Ledger) -> (Snapshot, Vec<Note>) {
    let (mut snapshot, mut notes) = fairlead_proto::ledger::ledger_to_snapshot(ledger);
    if snapshot.cluster.uid.as_ref().is_some_and(|said| said != uid) {
        let text = "it says that it is another cluster than its certificate does; left out";
        notes.push(Note::new("cluster", Reason::WrongIdentity, text));
        snapshot.cluster.uid = None;
    }
    if let Some(why) = snapshot.door.ca_pem.as_deref().and_then(unusable_ca) {
        let text = format!("its crossing CA {why}; the one before stays");
        notes.push(Note::new("door", Reason::Unreadable, text));
        snapshot.door.ca_pem = None;
    }
    let endorsements = snapshot.door.endorsements.iter();
    if let Some(why) = endorsements.clone().find_map(|pem| unusable(pem, 1)) {
        let text = format!("an endorsement of its crossing CA {why}; all of them were left out");
        notes.push(Note::new("door", Reason::Unreadable, text));
        snapshot.door.endorsements.clear();
    }
    (snapshot, notes)
}

fn unusable_ca(pem: &str) -> Option<String> {
    unusable(pem, CAS_MAX)
}

/// Why a text is not so many certificates of authorities, at least one, and nothing else.
fn unusable(pem: &str, max: usize) -> Option<String> {
    if pem.len() > CA_BYTES_MAX {
        return Some(format!("has more than {CA_BYTES_MAX} bytes"));
    }
    let sections: Result<Vec<(SectionKind, Vec<u8>)>, _> =
        <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()).collect();
    let Ok(sections) = sections else { return Some("is no PEM".into()) };
    let all = sections.iter().all(|(kind, _)| *kind == SectionKind::Certificate);
    if sections.is_empty() || sections.len() > max || !all {
        return Some(match max {
            1 => "is not one certificate and nothing else".into(),
            max => format!("is not one certificate, or up to {max}, and nothing else"),
        });
    }
    if !is_bare(pem) {
        return Some("has text around it".into());
    }
    sections.iter().find_map(|(_, der)| unusable_certificate(der))
}

/// Text around a certificate would be skipped here; other readers of PEM refuse it.
fn is_bare(pem: &str) -> bool {
    let mut rest = pem.trim();
    while let Some(begun) = rest.strip_prefix("-----BEGIN CERTIFICATE-----") {
        let Some((_, after)) = begun.split_once("-----END CERTIFICATE-----") else { return false };
        rest = after.trim();
    }
    rest.is_empty()
}

fn unusable_certificate(der: &[u8]) -> Option<String> {
    match x509_parser::certificate::X509Certificate::from_der(der) {
        Ok(([], certificate)) => {
            if !certificate.is_ca() {
                return Some("is no certificate of an authority".into());
            }
        }
        _ => return Some("cannot be read".into()),
    }
    let der = CertificateDer::from(der);
    rustls::RootCertStore::empty().add(der).err().map(|error| format!("cannot be used: {error}"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use fairlead_model::Millis;
    use fairlead_model::snapshot::DoorState;
    use fairlead_proto::ledger::snapshot_to_ledger;

    use super::*;
    use crate::pki;

    fn uid(text: &str) -> ClusterUid {
        ClusterUid::new(text).unwrap()
    }

    fn said(snapshot: &Snapshot) -> (Snapshot, Vec<Reason>) {
        let (snapshot, notes) = snapshot_of(&uid("u-west"), &snapshot_to_ledger(snapshot));
        (snapshot, notes.into_iter().map(|note| note.reason).collect())
    }

    fn mk_snapshot(ca_pem: &str) -> Snapshot {
        let door = DoorState { ca_pem: Some(ca_pem.to_owned()), ..DoorState::default() };
        Snapshot { door, ..Snapshot::default() }
    }

    fn ca() -> pki::CaPem {
        pki::make_ca(Millis(1_700_000_000_000)).unwrap()
    }

    #[test]
    fn one_certificate_of_an_authority_counts() {
        let pem = ca().certificate;
        let (snapshot, notes) = said(&mk_snapshot(&pem));
        assert_eq!((snapshot.door.ca_pem, notes), (Some(pem), vec![]));
    }

    #[test]
    fn while_it_changes_there_are_two_and_endorsements() {
        let [old, new] = [ca().certificate, ca().certificate];
        let mut snapshot = mk_snapshot(&format!("{old}{new}"));
        snapshot.door.endorsements = vec![new.clone()];
        assert_eq!(said(&snapshot), (snapshot.clone(), vec![]));
        // One endorsement that cannot be read costs them all, and not the CA.
        snapshot.door.endorsements.push(format!("{old}{new}"));
        let (read, notes) = said(&snapshot);
        assert_eq!((read.door.ca_pem, read.door.endorsements), (snapshot.door.ca_pem, vec![]));
        assert_eq!(notes, [Reason::Unreadable]);
    }

    #[test]
    fn whatever_would_spoil_the_doors_of_others_is_left_out() {
        let authority = ca();
        let leaf = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.pem();
        let pem = authority.certificate;
        let garbage = "-----BEGIN CERTIFICATE-----\nZ2FyYmFnZQ==\n-----END CERTIFICATE-----\n";
        for text in [
            "",
            "garbage",
            garbage,
            "-----BEGIN CERTIFICATE-----\n",
            &pem.repeat(CAS_MAX + 1),
            &format!("{pem}words\n{pem}"),
            &format!("{pem}{garbage}"),
            &format!("{pem}-----BEGIN "),
            &format!("words\n{pem}"),
            &format!("{pem}{}", authority.key),
            &format!("{}{pem}", "\n".repeat(CA_BYTES_MAX)),
            &pem.replacen('A', "é", 1),
            &leaf,
        ] {
            let (snapshot, notes) = said(&mk_snapshot(text));
            assert_eq!((snapshot.door.ca_pem, notes), (None, vec![Reason::Unreadable]), "{text}");
        }
    }

    #[test]
    fn a_member_is_the_cluster_of_its_certificate() {
        let mut snapshot = Snapshot::default();
        snapshot.cluster.uid = Some(uid("u-east"));
        let (kept, notes) = said(&snapshot);
        assert_eq!((kept.cluster.uid, notes), (None, vec![Reason::WrongIdentity]));
        snapshot.cluster.uid = Some(uid("u-west"));
        assert_eq!(said(&snapshot), (snapshot, vec![]));
    }
}
