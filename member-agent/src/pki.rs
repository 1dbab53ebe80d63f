//! Keys and certificates that are made here: the member's crossing CA, its leafs, requests to the hub.
//!
//! Pure but for randomness: the time is passed in. Private keys leave this module only as PEM for
//! Secrets of our own namespace.

use std::time::Duration;

use fairlead_model::Millis;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::tls::{self, Leaf};

/// A crossing CA is good for that long.
pub const CA_DAYS: u64 = 3_650;
/// A leaf is good for that long; it is renewed after a third of it.
pub const LEAF_DAYS: u64 = 90;
/// Certificates begin that long before they are made: clocks of members differ.
const BACKDATED: Duration = Duration::from_secs(3_600);
const DAY: u64 = 86_400;

/// Why a certificate cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Making it failed.
    #[error("make {what}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Why.
        source: rcgen::Error,
    },
    /// Reading it failed.
    #[error("{what} is not readable")]
    Read {
        /// What was read.
        what: &'static str,
    },
}

/// What a leaf is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A door.
    Server,
    /// A gateway that calls doors.
    Client,
}

fn make(what: &'static str) -> impl Fn(rcgen::Error) -> PkiError {
    move |source| PkiError::Make { what, source }
}

/// Makes a crossing CA. Its name holds the cluster's UID, so that a reused member name inherits nothing.
///
/// # Errors
/// [`PkiError::Make`] when the key cannot be made.
pub fn make_ca(common_name: &str, now: Millis) -> Result<Leaf, PkiError> {
    let key = KeyPair::generate().map_err(make("the key of the crossing CA"))?;
    let params = ca_params(common_name, now)?;
    let cert = params.self_signed(&key).map_err(make("the crossing CA"))?;
    Ok(Leaf { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// A certificate of the old CA for the new one's key: whoever believes the old one may believe the new
/// one. No gateway is given it; agents look at it ([`vouched`]).
///
/// # Errors
/// [`PkiError`] when one of the two has no meaning.
pub fn endorse(old: &Leaf, new: &Leaf, now: Millis) -> Result<String, PkiError> {
    let old_key = KeyPair::from_pem(&old.key_pem).map_err(make("an endorsement: the old key"))?;
    let issuer = Issuer::from_ca_cert_pem(&old.cert_pem, old_key)
        .map_err(make("an endorsement: the old CA"))?;
    let key = KeyPair::from_pem(&new.key_pem).map_err(make("an endorsement: the new key"))?;
    let mut params = ca_params("fairlead crossing endorsement", now)?;
    params.use_authority_key_identifier_extension = true;
    let cert = params.signed_by(&key, &issuer).map_err(make("an endorsement"))?;
    Ok(cert.pem())
}

fn ca_params(common_name: &str, now: Millis) -> Result<CertificateParams, PkiError> {
    let mut params = params(Vec::new(), common_name, now, CA_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Makes a leaf of a CA for one name.
///
/// # Errors
/// [`PkiError`] when the CA has no meaning or the key cannot be made.
pub fn make_leaf(
    ca: &Leaf,
    names: &[String],
    purpose: Purpose,
    now: Millis,
) -> Result<Leaf, PkiError> {
    let ca_key = KeyPair::from_pem(&ca.key_pem).map_err(make("a leaf: key of the CA"))?;
    let issuer = Issuer::from_ca_cert_pem(&ca.cert_pem, ca_key).map_err(make("a leaf: the CA"))?;
    let key = KeyPair::generate().map_err(make("the key of a leaf"))?;
    let name = names.first().map_or("", String::as_str);
    let mut params = params(names.to_vec(), name, now, LEAF_DAYS)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match purpose {
        Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    let cert = params.signed_by(&key, &issuer).map_err(make("a leaf"))?;
    Ok(Leaf { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

fn params(
    names: Vec<String>,
    common_name: &str,
    now: Millis,
    days: u64,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(names).map_err(make("a certificate: names"))?;
    // A common name holds at most 64 characters; the name that counts is the alternative one.
    let common_name: String = common_name.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(now.0);
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::from_secs(days * DAY);
    Ok(params)
}

/// A new key, PEM.
///
/// # Errors
/// [`PkiError::Make`] when there is no randomness.
pub fn make_key() -> Result<String, PkiError> {
    Ok(KeyPair::generate().map_err(make("a key"))?.serialize_pem())
}

/// A signing request for a key. Who we are is the hub's to say; only the key counts.
///
/// # Errors
/// [`PkiError`] when the key has no meaning.
pub fn make_csr(key_pem: &str) -> Result<String, PkiError> {
    let key = KeyPair::from_pem(key_pem).map_err(make("a signing request: the key"))?;
    let params = CertificateParams::new(Vec::new()).map_err(make("a signing request"))?;
    let csr = params.serialize_request(&key).map_err(make("a signing request"))?;
    csr.pem().map_err(make("a signing request"))
}

/// What is asked of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Valid from.
    pub not_before: Millis,
    /// Valid until.
    pub not_after: Millis,
    /// DNS names and URIs.
    pub names: Vec<String>,
}

impl CertificateFacts {
    /// Reads the first certificate of a PEM text.
    ///
    /// # Errors
    /// [`PkiError::Read`] when there is none that can be read.
    pub fn of(cert_pem: &str) -> Result<Self, PkiError> {
        let failed = || PkiError::Read { what: "a certificate" };
        let chain = tls::certificates(cert_pem, "a certificate").map_err(|_| failed())?;
        let (_, cert) = x509_parser::parse_x509_certificate(&chain[0]).map_err(|_| failed())?;
        let millis =
            |seconds: i64| Millis(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000));
        let names = cert.subject_alternative_name().ok().flatten();
        let names = names.map_or(&[][..], |san| san.value.general_names.as_slice());
        let text = |name: &x509_parser::extensions::GeneralName<'_>| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
            x509_parser::extensions::GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        };
        Ok(Self {
            not_before: millis(cert.validity().not_before.timestamp()),
            not_after: millis(cert.validity().not_after.timestamp()),
            names: names.iter().filter_map(text).collect(),
        })
    }

    /// When that share of its life is over.
    pub fn at_share(&self, parts: u64, of: u64) -> Millis {
        self.not_before.plus(self.not_after.since(self.not_before) / of * parts)
    }
}

/// Whether a leaf was signed by a CA.
pub fn is_signed_by(leaf_pem: &str, ca_pem: &str) -> bool {
    let (Ok(leaf), Ok(ca)) =
        (tls::certificates(leaf_pem, "the leaf"), tls::certificates(ca_pem, "the CA"))
    else {
        return false;
    };
    let leaf = x509_parser::parse_x509_certificate(&leaf[0]);
    let ca = x509_parser::parse_x509_certificate(&ca[0]);
    match (leaf, ca) {
        (Ok((_, leaf)), Ok((_, ca))) => leaf.verify_signature(Some(ca.public_key())).is_ok(),
        _ => false,
    }
}

/// Those of the shown CAs that are one of the pinned ones, or whose key was endorsed by one of them, at
/// whatever remove. What cannot be read vouches for nobody and is vouched for by nobody.
///
/// An endorsement must be an authority's: a certificate of a door is signed by the CA, too, and its key
/// is in the hands of gateways.
pub fn vouched<'a>(
    pinned: &[String],
    endorsements: &[String],
    shown: &'a [String],
) -> Vec<&'a str> {
    let ders = |pems: &[String]| -> Vec<Vec<u8>> { pems.iter().filter_map(|p| der(p)).collect() };
    let (pinned, endorsements) = (ders(pinned), ders(endorsements));
    let (pinned, endorsements) = (authorities(&pinned), authorities(&endorsements));
    let mut trusted: Vec<&X509Certificate<'_>> = pinned.iter().collect();
    let mut open: Vec<&X509Certificate<'_>> = endorsements.iter().collect();
    loop {
        let is_signed = |made: &&X509Certificate<'_>| {
            trusted.iter().any(|by| made.verify_signature(Some(by.public_key())).is_ok())
        };
        let (good, rest): (Vec<_>, Vec<_>) = open.into_iter().partition(is_signed);
        if good.is_empty() {
            break;
        }
        trusted.extend(good);
        open = rest;
    }
    let is_trusted = |pem: &&String| {
        let Some(der) = der(pem) else { return false };
        let shown = authorities(std::slice::from_ref(&der));
        let is_same = |ca: &&X509Certificate<'_>| {
            shown.iter().any(|shown| shown.public_key().raw == ca.public_key().raw)
        };
        trusted.iter().any(is_same)
    };
    shown.iter().filter(is_trusted).map(String::as_str).collect()
}

/// Those that may sign other certificates.
fn authorities(ders: &[Vec<u8>]) -> Vec<X509Certificate<'_>> {
    let parsed = ders.iter().filter_map(|der| X509Certificate::from_der(der).ok());
    parsed.map(|(_, certificate)| certificate).filter(|it| it.is_ca()).collect()
}

fn der(pem: &str) -> Option<Vec<u8>> {
    let all = tls::certificates(pem, "a certificate").ok()?;
    let [one] = all.as_slice() else { return None };
    Some(one.to_vec())
}

/// The certificates of a PEM text, one text each; what stands between them is left out.
pub fn split(pem: &str) -> Vec<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut blocks = Vec::new();
    let mut rest = pem;
    while let Some((_, begun)) = rest.split_once(BEGIN) {
        let Some((body, after)) = begun.split_once(END) else { break };
        blocks.push(format!("{BEGIN}{body}{END}\n"));
        rest = after;
    }
    blocks
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::slice::from_ref;

    use super::*;

    const NOW: Millis = Millis(1_800_000_000_000);

    #[test]
    fn a_leaf_is_of_its_ca_for_its_name_and_time() {
        let ca = make_ca("fairlead crossing CA of uid-east", NOW).unwrap();
        let other = make_ca("fairlead crossing CA of uid-east", NOW).unwrap();
        let leaf = {
            let name = "door.uid-east.fairlead.internal".to_owned();
            make_leaf(&ca, &[name], Purpose::Server, NOW).unwrap()
        };
        assert!(is_signed_by(&leaf.cert_pem, &ca.cert_pem));
        assert!(!is_signed_by(&leaf.cert_pem, &other.cert_pem));
        let facts = CertificateFacts::of(&leaf.cert_pem).unwrap();
        assert_eq!(facts.names, ["door.uid-east.fairlead.internal"]);
        assert_eq!(facts.not_after.since(NOW), LEAF_DAYS * DAY * 1_000);
        let third = facts.at_share(1, 3).since(NOW) / 1_000 / DAY;
        assert!((29..=30).contains(&third), "{third}");
    }

    #[test]
    fn what_is_no_certificate_is_an_error() {
        assert!(CertificateFacts::of("").is_err());
        assert!(
            CertificateFacts::of("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----")
                .is_err()
        );
        assert!(!is_signed_by("x", "y"));
        let broken = Leaf { cert_pem: "x".to_owned(), key_pem: "y".to_owned() };
        assert!(make_leaf(&broken, &["a".to_owned()], Purpose::Client, NOW).is_err());
        assert!(make_csr("no key").is_err());
    }

    #[test]
    fn a_request_holds_the_key() {
        let key = make_key().unwrap();
        assert!(make_csr(&key).unwrap().contains("CERTIFICATE REQUEST"));
    }

    fn mk_chain(len: usize) -> (Vec<Leaf>, Vec<String>) {
        let cas: Vec<Leaf> = (0..len).map(|_| make_ca("ca", NOW).unwrap()).collect();
        let endorsements = cas.windows(2).map(|w| endorse(&w[0], &w[1], NOW).unwrap()).collect();
        (cas, endorsements)
    }

    fn pems(cas: &[&Leaf]) -> Vec<String> {
        cas.iter().map(|ca| ca.cert_pem.clone()).collect()
    }

    #[test]
    fn who_was_endorsed_at_whatever_remove_is_vouched_for() {
        let (cas, endorsements) = mk_chain(4);
        let [first, last] = [&cas[0], &cas[3]];
        let (pinned, shown) = (pems(&[first]), pems(&[last]));
        assert_eq!(vouched(&pinned, &endorsements, &shown), [&last.cert_pem]);
        let backwards: Vec<String> = endorsements.iter().rev().cloned().collect();
        assert_eq!(vouched(&pinned, &backwards, &shown), [&last.cert_pem]);
        // Not the other way round, and not over a gap.
        assert_eq!(vouched(&shown, &endorsements, &pinned), [""; 0]);
        assert_eq!(vouched(&pinned, &endorsements[1..], &shown), [""; 0]);
        assert_eq!(vouched(&pinned, &[], &pinned), [&first.cert_pem]);
    }

    #[test]
    fn strangers_and_leafs_vouch_for_nobody() {
        let (cas, _) = mk_chain(2);
        let stranger = make_ca("ca", NOW).unwrap();
        let forged = endorse(&stranger, &cas[1], NOW).unwrap();
        let (pinned, shown) = (pems(&[&cas[0]]), pems(&[&cas[1], &stranger]));
        assert_eq!(vouched(&pinned, &[forged, "x".to_owned()], &shown), [""; 0]);
        // A door's certificate is the CA's, and a thief of its key can make any certificate with it.
        let leaf = make_leaf(&cas[0], &["door".to_owned()], Purpose::Server, NOW).unwrap();
        let key = KeyPair::from_pem(&leaf.key_pem).unwrap();
        let own = ca_params("ca", NOW).unwrap().self_signed(&key).unwrap().pem();
        assert_eq!(vouched(&pinned, from_ref(&leaf.cert_pem), from_ref(&own)), [""; 0]);
        // Nor is a leaf believed as an authority.
        assert_eq!(vouched(from_ref(&leaf.cert_pem), &[], from_ref(&leaf.cert_pem)), [""; 0]);
    }

    #[test]
    fn a_text_is_split_into_its_certificates() {
        let [a, b] = [make_ca("a", NOW).unwrap(), make_ca("b", NOW).unwrap()];
        let text = format!("words\n{}\nmore\n{}-----BEGIN CERT", a.cert_pem, b.cert_pem);
        let blocks = split(&text);
        assert_eq!(blocks.len(), 2);
        assert_eq!(der(&blocks[0]), der(&a.cert_pem));
        assert_eq!(der(&blocks[1]), der(&b.cert_pem));
        assert_eq!(split(""), [""; 0]);
    }
}
