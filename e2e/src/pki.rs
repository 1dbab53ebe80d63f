//! Certificates for worlds and scenarios: throw-away authorities and leafs, P-256, valid a year.
//!
//! Nothing here is meant to resist anybody; the shapes are those that real clusters have.

use std::net::IpAddr;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A certificate and its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub cert_pem: String,
    pub key_pem: String,
}

/// A certificate authority.
pub struct Authority {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Which side of a connection a leaf is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Server,
    Client,
}

impl Authority {
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params);
        let key = KeyPair::generate().context("making a CA key")?;
        let cert_pem = params.self_signed(&key).context("signing a CA")?.pem();
        Ok(Self { cert_pem, issuer: Issuer::new(params, key) })
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a leaf. `organisations` become O entries: Kubernetes reads them as groups.
    pub fn issue(
        &self,
        side: Side,
        name: &str,
        organisations: &[&str],
        alternatives: &[&str],
    ) -> Result<Leaf> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        for organisation in organisations {
            params.distinguished_name.push(DnType::OrganizationName, *organisation);
        }
        for name in alternatives {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into().context("a name for a leaf")?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match side {
            Side::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Side::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        validity(&mut params);
        let key = KeyPair::generate().context("making a leaf key")?;
        let cert = params.signed_by(&key, &self.issuer).context("signing a leaf")?;
        Ok(Leaf { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

/// A key pair alone, for signing service account tokens: private and public key, PEM.
pub fn new_key_pair() -> Result<(String, String)> {
    let key = KeyPair::generate().context("making a key")?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// Much of the past too: clocks of tests are set back, and no cluster is as young as these.
fn validity(params: &mut CertificateParams) {
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(24 * 3600);
    params.not_before = (now - day * 60).into();
    params.not_after = (now + day * 365).into();
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn leaf_carries_groups_and_alternatives() {
        let ca = Authority::new("test").unwrap();
        let leaf = ca
            .issue(Side::Client, "admin", &["system:masters"], &["10.77.1.1", "api.local"])
            .unwrap();
        let params = rcgen::CertificateSigningRequestParams::from_pem(&leaf.cert_pem);
        assert!(params.is_err(), "a certificate is not a request");
        assert!(leaf.cert_pem.contains("BEGIN CERTIFICATE"));
        assert!(leaf.key_pem.contains("PRIVATE KEY"));
        assert!(ca.key_pem().contains("PRIVATE KEY"));
    }
}
